"""Shapes of the published benchmark (FlashFFTConv's depthwise convolution: B 16, K 5) and of MAD's stacks.

MAD's are stored as the layers hold them: channel by channel in a gated projection, token by token elsewhere. R outputs
read each channel; S streams are cut from them.
"""

from typing import Any

import torch
import torch.nn.functional as F

import kernels
from kernels.cases import Work

SHAPES = [
    {"B": 128, "H": 512, "L": 127, "K": 3, "stored": "HBL"},
    {"B": 128, "H": 512, "L": 127, "K": 3, "stored": "BLH"},
    {"B": 128, "H": 512, "L": 1024, "K": 3, "stored": "HBL"},
    {"B": 128, "H": 96, "L": 1024, "K": 3, "R": 4, "S": 3, "stored": "HBL"},
    {"B": 128, "H": 384, "L": 1024, "K": 3, "R": 4, "S": 3, "stored": "HBL"},
    *({"B": 16, "H": d, "L": n, "K": 5} for n, d in ((1024, 768), (2048, 2048), (8192, 8192))),
]
CONFIGS = [
    {"B": 4, "H": 3, "L": 1023, "K": 5, "R": 4, "S": 3, "stored": "HBL"},
    {"B": 4, "H": 6, "L": 127, "K": 6, "R": 4, "S": 3, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1023, "K": 5, "R": 4, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1023, "K": 5, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1020, "K": 5, "R": 4, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1020, "K": 5, "R": 2, "stored": "HBL"},
    {"B": 2, "H": 4, "L": 1024, "K": 6},
    {"B": 2, "H": 4, "L": 1024, "K": 4},
    {"B": 2, "H": 40, "L": 20, "K": 3, "stored": "BLH"},
    {"B": 3, "H": 4, "L": 127, "K": 4},
    {"B": 2, "H": 4, "L": 20, "K": 3},
]


def tensors(shape: dict, dtype: torch.dtype, device: str) -> dict[str, Any]:
    stored = shape.get("stored", "BHL")
    u = torch.randn([shape[axis] for axis in stored], dtype=dtype, device=device)
    u = u.permute([stored.index(axis) for axis in "BHL"])
    w = torch.randn(shape.get("R", 1) * shape["H"], shape["K"], device=device)
    return {"u": u, "w": w, "streams": shape.get("S", 1)}


def call(tensors: dict[str, Any], backend: str) -> tuple[torch.Tensor, ...]:
    return kernels.short_conv_streams(**tensors, backend=backend)


def work(shape: dict, size: int, backward: bool) -> Work:
    elements, repeats = shape["B"] * shape["H"] * shape["L"], shape.get("R", 1)
    return Work(bytes=((2 + repeats) if backward else (1 + repeats)) * elements * size, flops=0)


def rivals():
    def prepare(tensors):
        """Taps in the order of a grouped convolution's outputs: those of a channel next to each other."""
        u, w = tensors["u"].contiguous(), tensors["w"]
        return {"u": u, "w": w.view(-1, u.shape[1], w.shape[1]).transpose(0, 1).reshape(w.shape)}

    def conv1d(u, w):
        weights, channels = w.to(u.dtype).unsqueeze(1), u.shape[1]
        return F.conv1d(u, weights, padding=w.shape[1] - 1, groups=channels)[..., : u.shape[-1]]

    return {"conv1d": (prepare, conv1d)}
