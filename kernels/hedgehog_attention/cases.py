"""Shapes: MAD's layer (8 heads of 16), and the published kernel's (B 16, H 16, 64 features of a side, width 128)."""

import torch

from kernels.cases import Work

SHAPES = [
    {"B": 128, "H": 8, "T": 128, "d": 16, "f": 16, "window": 0},
    {"B": 128, "H": 8, "T": 1024, "d": 16, "f": 16, "window": 0},
    {"B": 16, "H": 16, "T": 1024, "d": 128, "f": 64, "window": 64},
    {"B": 16, "H": 16, "T": 4096, "d": 128, "f": 64, "window": 0},
]
CONFIGS = [
    {"B": 1, "H": 1, "T": 80, "d": 128, "f": 64, "window": 64},
    {"B": 1, "H": 1, "T": 80, "d": 128, "f": 128, "window": 0},
    {"B": 1, "H": 1, "T": 80, "d": 256, "f": 128, "window": 0},
    {"B": 1, "H": 1, "T": 1040, "d": 128, "f": 64, "window": 0},  # in spans
    {"B": 1, "H": 1, "T": 1040, "d": 112, "f": 48, "window": 0},
    {"B": 1, "H": 1, "T": 80, "d": 128, "f": 64, "window": 0},
    {"B": 1, "H": 1, "T": 80, "d": 128, "f": 16, "window": 0},
    {"B": 1, "H": 1, "T": 80, "d": 32, "f": 32, "window": 33},
    {"B": 1, "H": 1, "T": 80, "d": 64, "f": 64, "window": 0},
    {"B": 1, "H": 1, "T": 80, "d": 64, "f": 32, "window": 0},
    {"B": 1, "H": 1, "T": 80, "d": 32, "f": 32, "window": 0},
    {"B": 1, "H": 1, "T": 80, "d": 32, "f": 10, "window": 0},
    {"B": 1, "H": 1, "T": 520, "d": 16, "f": 16, "window": 0},
    {"B": 1, "H": 2, "T": 80, "d": 16, "f": 16, "window": 33},
    {"B": 1, "H": 2, "T": 40, "d": 16, "f": 10, "window": 0},
    {"B": 1, "H": 2, "T": 40, "d": 16, "f": 16, "window": 0},
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict:
    size = (shape["B"], shape["H"], shape["T"], shape["d"])
    given = {name: torch.randn(size, dtype=dtype, device=device) for name in "qkv"}
    weights = (torch.randn(shape["H"], shape["d"], shape["f"], device=device) * shape["d"] ** -0.5 for _ in range(2))
    return given | dict(zip(("w_q", "w_k"), weights, strict=True)) | {"window": shape["window"] or None}


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """q, k, v in and y out, the features and a state; backward also dy, three gradients and twice the products."""
    tokens = shape["B"] * shape["H"] * shape["T"]
    d, f, window = shape["d"], shape["f"], shape["window"]
    flops = tokens * (4 * d * f + 8 * f * d + 4 * window * d)
    moved = tokens * d * size * (8 if backward else 4)
    return Work(bytes=moved, flops=flops * (2 if backward else 1), exps=tokens * (4 * f + window))


def rivals():
    return {}
