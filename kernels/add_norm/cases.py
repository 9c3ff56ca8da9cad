"""Shapes of the MAD protocol, batch 128 and dim 128: a residual stream in fp32, whatever a branch's type."""

from typing import Any

import torch

import kernels
from kernels.cases import Work

SHAPES = [
    {"B": 128, "T": length, "d": 128, "center": center}
    for length, center in ((32, False), (128, False), (256, False), (1024, False), (256, True))
]
CONFIGS = [
    {"B": 2, "T": 33, "d": dim, "center": center}
    for dim in (4096, 2048, 1024, 512, 256, 128, 64, 32, 10)
    for center in (False, True)
] + [{"B": 464, "T": 128, "d": 128, "center": center} for center in (False, True)]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, Any]:
    size = (shape["B"], shape["T"], shape["d"])
    vectors = {name: torch.randn(shape["d"], device=device) for name in ("weight", "bias")[: 1 + shape["center"]]}
    both = {"x": torch.randn(size, device=device), "y": torch.randn(size, dtype=dtype, device=device)}
    return both | vectors | {"center": shape["center"], "dtype": dtype}


def call(tensors: dict[str, Any], backend: str):
    if tensors["x"].dtype == torch.float64:
        tensors = {**tensors, "dtype": torch.float64}
    return kernels.add_norm(**tensors, backend=backend)


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """x and y in, sum and norm out; backward the sum and both gradients in, those of x and y out."""
    numbers = shape["B"] * shape["T"] * shape["d"]
    return Work(bytes=numbers * ((12 + 2 * size) if backward else (8 + 2 * size)), flops=0)


def rivals():
    return {}
