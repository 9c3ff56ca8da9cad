"""Shapes of MAD's SwiGLU (dim 128, width 352) at batch 128 and 32 to 1,024 tokens."""

import torch

from kernels.cases import Work
from kernels.gated_mlp import reference

SHAPES = [{"N": 128 * length, "D": 128, "W": 352} for length in (32, 128, 1024)]
BACKEND = "triton"  # "auto" leaves fp32 to torch
CONFIGS = [
    {"N": rows, "D": dim, "W": width}
    for rows, dim, width in ((200, 128, 352), (30, 100, 70), (200, 64, 176), (100, 24, 96), (9, 16, 48))
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    rows, dim, width = shape["N"], shape["D"], shape["W"]
    return {
        "x": torch.randn(rows, dim, dtype=dtype, device=device),
        "up": torch.randn(2 * width, dim, dtype=dtype, device=device) * dim**-0.5,
        "down": torch.randn(dim, width, dtype=dtype, device=device) * width**-0.5,
    }


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """Forward: rows and weights in, rows out. Backward: those and dy in, gradients out; twice the products."""
    rows, weights = shape["N"] * shape["D"], 3 * shape["D"] * shape["W"]
    moved = 3 * rows + 2 * weights if backward else 2 * rows + weights
    return Work(bytes=moved * size, flops=(4 if backward else 2) * shape["N"] * weights)


def rivals():
    compiled = torch.compile(reference.gated_mlp, dynamic=False)  # cuBLAS, and the activation fused
    return {"compiled": lambda x, up, down: compiled(x, up, down, activation="silu")}
