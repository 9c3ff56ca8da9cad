"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

from typing import Any

import torch
from torch import nn

from layers.base import positive


class Rotary(nn.Module):
    """Rotates the pairs (x[i], x[i + d/2]) by position * base^(-2i/d), so that q.k depends on distance alone.

    Cosines and sines are a table for `max_length` positions: on a GPU they would cost more than the attention they are
    for, and a step's positions find the very values of the whole sequence.
    """

    def __init__(self, width: int, max_length: int, base: float = 10000.0):
        super().__init__()
        positive(width=width)
        if width % 2:
            raise ValueError(f"rotary positions need an even head width, got {width}; set rope=false")
        frequencies = base ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
        angles = torch.arange(max_length, dtype=torch.float64).unsqueeze(-1) * frequencies  # (max_length, d/2)
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "Rotary":
        """The tables go where the model goes, but stay fp32 whatever it is cast to: rounded they were other angles."""
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)
        self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., T, d), positions (T,) or broadcastable to x's leading dimensions and T, whole numbers; None:
        0 .. T - 1. Returns (..., T, d) of x's type; computed in the wider of x's and the tables' type, fp32."""
        length, half = x.shape[-2], x.shape[-1] // 2
        if positions is None:
            cos, sin = self.cos[:length], self.sin[:length]
        else:
            cos, sin = self.cos[positions], self.sin[positions]
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
