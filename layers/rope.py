"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

import torch


def rope(x: torch.Tensor, positions: torch.Tensor | None = None, base: float = 10000.0) -> torch.Tensor:
    """Rotate the pairs (x[i], x[i + d/2]) by position * base^(-2i/d), so that q.k depends on distance alone.

    Args:
        x: (..., T, d), d even.
        positions: (T,), or broadcastable to x's leading dimensions and T; None: 0 .. T - 1.

    Returns:
        (..., T, d) of x's type; the angles are computed in fp32 or wider.
    """
    half = x.shape[-1] // 2
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if positions is None:
        positions = torch.arange(x.shape[-2], device=x.device)
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angles = positions.to(wide).unsqueeze(-1) * frequencies  # (..., T, d/2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half].to(wide), x[..., half:].to(wide)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
