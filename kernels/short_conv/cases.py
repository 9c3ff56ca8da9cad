"""Shapes of the published benchmark (FlashFFTConv's depthwise convolution: B 16, K 5) and of MAD's stacks.

MAD's are stored as the layers hold them: channel by channel in a gated projection, whose linear map leaves its bias to
the convolution (`added`), token by token elsewhere. R outputs read each channel; S streams are cut from them.
"""

from typing import Any

import torch
import torch.nn.functional as F

import kernels
from kernels.cases import Work
from kernels.checks import ACTIVATIONS

SHAPES = [
    {"B": 128, "H": 512, "L": 127, "K": 3, "stored": "HBL"},
    {"B": 128, "H": 512, "L": 127, "K": 3, "stored": "BLH"},
    {"B": 128, "H": 512, "L": 1024, "K": 3, "stored": "HBL"},
    {"B": 128, "H": 96, "L": 1024, "K": 3, "R": 4, "S": 3, "stored": "HBL"},
    {"B": 128, "H": 384, "L": 1024, "K": 3, "R": 4, "S": 3, "stored": "HBL"},
    {"B": 128, "H": 96, "L": 1024, "K": 3, "R": 4, "S": 3, "stored": "HBL", "added": True},
    *({"B": 16, "H": d, "L": n, "K": 5} for n, d in ((1024, 768), (2048, 2048), (8192, 8192))),
    *({"B": 128, "H": 256, "L": 1024, "K": 4, "stored": s, "bias": True, "activation": "silu"} for s in ("HBL", "BLH")),
]
CONFIGS = [
    {"B": 4, "H": 3, "L": 1023, "K": 5, "R": 4, "S": 3, "stored": "HBL"},
    *({"B": 4, "H": 3, "L": n, "K": 5, "R": 4, "S": 3, "stored": "HBL", "added": True} for n in (1023, 1020)),
    {"B": 4, "H": 6, "L": 127, "K": 6, "R": 4, "S": 3, "stored": "HBL"},
    {"B": 4, "H": 6, "L": 127, "K": 6, "R": 4, "S": 3, "stored": "HBL", "added": True},
    {"B": 4, "H": 3, "L": 1024, "K": 3, "R": 4, "S": 3, "stored": "HBL", "added": True},
    {"B": 4, "H": 4, "L": 1023, "K": 5, "R": 4, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1023, "K": 5, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1020, "K": 5, "R": 4, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1020, "K": 5, "R": 2, "stored": "HBL"},
    {"B": 4, "H": 3, "L": 1024, "K": 3, "R": 4, "S": 3, "stored": "HBL"},
    {"B": 4, "H": 4, "L": 1024, "K": 3, "stored": "HBL"},
    {"B": 20, "H": 4, "L": 127, "K": 3, "stored": "HBL"},
    *({"B": 2, "H": 4, "L": n, "K": 5} for n in (2048, 1024)),
    *(
        {"B": 2, "H": 40, "L": n, "K": 4, "stored": stored, "bias": True, "activation": activation}
        for activation in ("silu", "gelu")
        for n, stored in ((300, "BLH"), (1024, "HBL"), (127, "BHL"))
    ),
    {"B": 2, "H": 4, "L": 1024, "K": 6},
    {"B": 2, "H": 4, "L": 1024, "K": 4},
    {"B": 2, "H": 40, "L": 20, "K": 3, "stored": "BLH"},
    {"B": 2, "H": 40, "L": 40, "K": 3, "stored": "BLH"},
    {"B": 3, "H": 4, "L": 127, "K": 4},
    {"B": 2, "H": 4, "L": 20, "K": 3},
]


def tensors(shape: dict, dtype: torch.dtype, device: str) -> dict[str, Any]:
    stored = shape.get("stored", "BHL")
    u = torch.randn([shape[axis] for axis in stored], dtype=dtype, device=device)
    u = u.permute([stored.index(axis) for axis in "BHL"])
    outputs = shape.get("R", 1) * shape["H"]
    given = {"u": u, "w": torch.randn(outputs, shape["K"], device=device), "streams": shape.get("S", 1)}
    if shape.get("bias"):
        given["bias"] = torch.randn(outputs, device=device)
    if shape.get("added"):
        given["input_bias"] = torch.randn(shape["H"], device=device)
    if "activation" in shape:
        given["activation"] = shape["activation"]
    return given


def call(tensors: dict[str, Any], backend: str) -> tuple[torch.Tensor, ...]:
    return kernels.short_conv_streams(**tensors, backend=backend)


def work(shape: dict, size: int, backward: bool) -> Work:
    elements, repeats = shape["B"] * shape["H"] * shape["L"], shape.get("R", 1)
    return Work(bytes=((2 + repeats) if backward else (1 + repeats)) * elements * size, flops=0)


def rivals():
    def prepare(tensors):
        """Taps in the order of a grouped convolution's outputs: those of a channel next to each other."""
        if "input_bias" in tensors:
            raise NotImplementedError("a bias of the input")
        u, w = tensors["u"].contiguous(), tensors["w"]
        given = {"u": u, "w": w.view(-1, u.shape[1], w.shape[1]).transpose(0, 1).reshape(w.shape)}
        if "bias" in tensors:
            given["bias"] = tensors["bias"].view(-1, u.shape[1]).t().flatten().to(u.dtype)
        return given | {"activation": tensors.get("activation")}

    def conv1d(u, w, bias=None, activation=None):
        weights, channels = w.to(u.dtype).unsqueeze(1), u.shape[1]
        y = F.conv1d(u, weights, bias, padding=w.shape[1] - 1, groups=channels)[..., : u.shape[-1]]
        return y if activation is None else ACTIVATIONS[activation](y)

    return {"conv1d": (prepare, conv1d)}
