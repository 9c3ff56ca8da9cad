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
        self.width, self.max_length, self.base = width, max_length, base
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        cos, sin = self.tables()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (max_length, d/2) each, rounded once."""
        half = self.width // 2
        frequencies = self.base ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(self.max_length, dtype=torch.float64).unsqueeze(-1) * frequencies
        return angles.cos().float(), angles.sin().float()

    def _apply(self, fn: Any, recurse: bool = True) -> "Rotary":
        """The tables go where the model goes, but stay fp32 whatever it is cast to: rounded they were other angles."""
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)
        device = self.cos.device
        if cos.is_meta and device.type != "meta":
            cos, sin = self.tables()  # that device knows no values to take along
        self.cos, self.sin = cos.to(device), sin.to(device)
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
