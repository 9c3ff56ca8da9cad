"""Shapes of multi-head Hyena: the MAD protocol's lengths at batch 128, and longer sequences."""

import torch

from kernels.cases import Work

SHAPES = [
    {"B": 128, "H": 8, "T": 128, "d": 16},
    {"B": 128, "H": 8, "T": 1024, "d": 16},
    {"B": 8, "H": 8, "T": 4096, "d": 16},
    {"B": 8, "H": 16, "T": 2048, "d": 64},
]
CONFIGS = [
    {"B": batch, "H": 1, "T": length, "d": d}
    for batch, length, d in (
        (3, 300, 128),
        (3, 301, 64),
        (1100, 256, 16),
        (1100, 512, 16),
        (1100, 128, 16),
        (2200, 127, 16),
        (3, 256, 128),
        (3, 256, 64),
        (3, 130, 32),
        (3, 301, 16),
        (2, 64, 16),
        (2, 32, 16),
        (2, 16, 8),
    )
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """q, k, v channel-first in memory, as the layer has them; a filter as long as the sequence, that fades."""
    batch, heads, length, d = shape["B"], shape["H"], shape["T"], shape["d"]
    streams = torch.randn(3, heads, d, batch, length, dtype=dtype, device=device).permute(0, 3, 1, 4, 2)
    q, k, v = streams.unbind()
    taps = torch.randn(heads, length, device=device) * torch.exp(-3 * torch.arange(length, device=device) / length)
    return {"q": q, "k": k, "v": v, "taps": taps}


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """q, k, v in, y out, two products a pair; training also dy in, three gradients out, four more products."""
    tokens = shape["B"] * shape["H"] * shape["T"]
    pairs = tokens * (shape["T"] + 1) / 2
    streams, products = (8, 6) if backward else (4, 2)
    return Work(bytes=streams * tokens * shape["d"] * size, flops=2 * products * pairs * shape["d"])


def rivals():
    return {}
