"""Sum and norm in plain torch."""

import torch
import torch.nn.functional as F

from kernels.checks import wide


def add_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    center: bool,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels.add_norm."""
    total = x if y is None else x + y
    s = wide(total)
    weight, bias = weight.to(s.dtype), None if bias is None else bias.to(s.dtype)
    if center:
        normed = F.layer_norm(s, weight.shape, weight, bias, eps)
    else:
        normed = F.rms_norm(s, weight.shape, weight, eps)
        normed = normed if bias is None else normed + bias
    return total, normed.to(dtype or total.dtype)
