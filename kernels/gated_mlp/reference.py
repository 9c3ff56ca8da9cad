"""The gated channel mixer in plain torch: two products around an activation."""

import torch
import torch.nn.functional as F

from kernels.checks import ACTIVATIONS


def gated_mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, *, activation: str) -> torch.Tensor:
    """See kernels.gated_mlp."""
    gate, value = F.linear(x, up.to(x.dtype)).chunk(2, dim=-1)
    return F.linear(ACTIVATIONS[activation](gate) * value, down.to(x.dtype))
