"""Filters of the MAD protocol: Hyena's of 512 channels with four features, multi-head Hyena's of 8 with two."""

from typing import Any

import torch

import kernels
from kernels.cases import Work

SHAPES = [
    {"C": channels, "L": length, "E": 3, "F": width}
    for channels, width in ((512, 4), (8, 2))
    for length in (32, 128, 1024)
]
CONFIGS = [
    {"C": channels, "L": 40, "E": inputs, "F": width}
    for inputs, width in ((7, 4), (3, 4), (3, 3), (3, 2), (3, 1))
    for channels in (70, 32, 8)
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, Any]:
    channels, length, inputs, width = (shape[key] for key in ("C", "L", "E", "F"))

    def new(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=dtype, device=device)

    layers = {f"{name}{i}": new(*size) for i, n in enumerate((inputs, width, width))
              for name, size in (("w", (width, n)), ("b", (width,)))}  # fmt: skip
    decay = torch.rand(channels, dtype=dtype, device=device) / length
    return {"position": new(length, inputs), "frequency": new(width), **layers, "out": new(channels, width),
            "decay": decay}  # fmt: skip


def call(tensors: dict[str, Any], backend: str) -> torch.Tensor:
    position, frequency, *layers, out, decay = tensors.values()
    hidden = list(zip(layers[::2], layers[1::2], strict=True))
    return kernels.implicit_filter(position, frequency, hidden, out, decay, backend=backend)


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """Positions in, taps out; backward the taps' gradients in, the positions' out."""
    moved = shape["L"] * (shape["C"] * 4 + shape["E"] * size) * (2 if backward else 1)
    return Work(bytes=moved, flops=0)


def rivals():
    return {}
