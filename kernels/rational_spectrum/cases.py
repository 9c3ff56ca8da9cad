"""Shapes of RTF's language model (D 768) and of MAD's stacks; fp32 whatever the type of the data."""

import torch

from kernels.cases import Work

SHAPES = [
    {"D": 128, "A": 1, "N": 16, "L": 128},
    {"D": 128, "A": 128, "N": 16, "L": 1024},
    {"D": 768, "A": 768, "N": 64, "L": 8192},
]
CONFIGS = [{"D": 4, "A": 2, "N": 5, "L": 64}]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict:
    order = shape["N"]
    a, b = ((torch.rand(shape[rows], order, device=device) * 2 - 1) / order for rows in "AD")
    return {"a": a, "b": b, "h0": torch.randn(shape["D"], device=device), "length": shape["L"]}


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """The two spectra in and one out; backward that and dy in, two gradients out. Always complex64."""
    below, above = (shape[rows] * (shape["L"] // 2 + 1) * 8 for rows in "AD")
    scale = size / 2  # the floor of a wider type is as much higher
    return Work(bytes=scale * (2 * below + 3 * above if backward else below + 2 * above), flops=0)


def rivals():
    return {}


def call(tensors, backend):
    import kernels

    return torch.view_as_real(kernels.rational_spectrum(**tensors, backend=backend))
