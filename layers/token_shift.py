"""Token shift: each channel of what a layer's maps see is mixed with the same channel of the token before.

x + mu * (x[t-1] - x), with a mu of its own for each map: RWKV (Peng et al. 2023, arXiv 2305.13048).
"""

import torch
import torch.nn.functional as F
from torch import nn


def before(x: torch.Tensor) -> torch.Tensor:
    """What stands one token before, zeros before the first: (..., T, d) -> (..., T, d)."""
    return F.pad(x[..., :-1, :], (0, 0, min(1, x.shape[-2]), 0))


def new_mix(dim: int, *powers: float) -> nn.Parameter:
    """Shares of the token before: over the channels from 1 down to 0, a row for each power."""
    share = torch.arange(dim) / dim
    return nn.Parameter(torch.stack([1 - share**power for power in powers]))


def mixed(x: torch.Tensor, past: torch.Tensor, mix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """x, inputs one token before (B, T, dim), shares (rows, dim) -> for each row (B, T, dim)."""
    return (x + (past - x) * mix[:, None, None]).unbind(0)
