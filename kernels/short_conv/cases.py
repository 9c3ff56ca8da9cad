"""Shapes of the published benchmark (FlashFFTConv's depthwise convolution: B 16, K 5) and of MAD's stacks."""

import torch
import torch.nn.functional as F

from kernels.cases import Work

SHAPES = [
    {"B": 128, "H": 512, "L": 127, "K": 3},
    {"B": 128, "H": 512, "L": 1024, "K": 3},
    *({"B": 16, "H": d, "L": n, "K": 5} for n, d in ((1024, 768), (2048, 2048), (8192, 8192))),
]
CONFIGS = [{"B": 2, "H": 4, "L": length, "K": width} for length, width in ((1024, 5), (127, 4), (128, 3), (20, 3))]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    u = torch.randn(shape["B"], shape["H"], shape["L"], dtype=dtype, device=device)
    return {"u": u, "w": torch.randn(shape["H"], shape["K"], device=device)}


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    elements = shape["B"] * shape["H"] * shape["L"]
    return Work(bytes=(3 if backward else 2) * elements * size, flops=0)


def rivals():
    def conv1d(u, w):
        return F.conv1d(u, w.to(u.dtype).unsqueeze(1), padding=w.shape[1] - 1, groups=w.shape[0])[..., : u.shape[-1]]

    return {"conv1d": conv1d}
