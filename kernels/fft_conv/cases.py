"""Shapes of FlashFFTConv's benchmark and of MAD's stacks.

The former is B 64, H 768, gated; its FFT length N is our causal L = N / 2.
"""

from typing import Any

import torch

from kernels.cases import Work
from kernels.fft_conv.reference import by_fft

SHAPES = [
    *({"B": 128, "H": 512, "L": length, "gated": 0} for length in (32, 127, 128, 512, 1024)),
    *({"B": 64, "H": 768, "L": length, "gated": 1} for length in (512, 2048, 4096, 8192, 16384)),
    {"B": 16, "H": 768, "L": 65536, "gated": 1},
    *({"B": 64, "H": 768, "L": 4096, "gated": 1, "keep": keep} for keep in (64, 512, 2048)),
    {"B": 64, "H": 768, "L": 16384, "gated": 1, "keep": 8192},
]
CONFIGS = [
    {"B": 64, "H": 4, "L": 16384, "gated": 1},
    {"B": 128, "H": 1, "L": 127, "gated": 1},
    {"B": 128, "H": 1, "L": 1024, "gated": 1},
    {"B": 128, "H": 1, "L": 1024, "gated": 0},
    {"B": 2, "H": 1, "L": 17000, "gated": 1},
    {"B": 128, "H": 1, "L": 8192, "gated": 0},
    {"B": 64, "H": 1, "L": 8192, "gated": 1},
    {"B": 64, "H": 1, "L": 4096, "gated": 1},
    {"B": 64, "H": 1, "L": 512, "gated": 1},
    {"B": 128, "H": 1, "L": 127, "gated": 0},
    {"B": 128, "H": 1, "L": 128, "gated": 0},
    {"B": 2, "H": 1, "L": 1024, "gated": 1},
    {"B": 128, "H": 1, "L": 32, "gated": 0},
    {"B": 4, "H": 2, "L": 63, "gated": 1},
    {"B": 4, "H": 2, "L": 16, "gated": 0},
    *({"B": 2, "H": 2, "L": 4096, "gated": 1, "keep": keep} for keep in (2048, 512, 64)),
    {"B": 2, "H": 1, "L": 16384, "gated": 1, "keep": 8192},
    {"B": 2, "H": 1, "L": 8191, "gated": 0, "keep": 8192},
    {"B": 2, "H": 1, "L": 1000, "gated": 1, "keep": 100},
    {"B": 2, "H": 1, "L": 200, "gated": 0, "keep": 40},
    {"B": 4, "H": 2, "L": 16, "gated": 1, "keep": 3},
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, Any]:
    size = (shape["H"], shape["B"], shape["L"])  # channel-first, as the layers hold them
    names = ("u", "pre_gate", "post_gate") if shape["gated"] else ("u",)
    streams = {name: torch.randn(size, dtype=dtype, device=device).transpose(0, 1) for name in names}
    k = torch.randn(shape["H"], shape["L"], device=device) * shape["L"] ** -0.5
    kept = {"keep": shape["keep"]} if "keep" in shape else {}
    return streams | {"k": k, "skip": torch.randn(shape["H"], device=device)} | kept


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """Forward: every stream once. Backward: the streams and dy in, their gradients out. FLOPs: none that must be, kept
    frequencies or all."""
    elements = shape["B"] * shape["H"] * shape["L"]
    streams = 3 if shape["gated"] else 1
    return Work(bytes=(2 * streams + 1 if backward else streams + 1) * elements * size, flops=0)


def rivals():
    def rfft(u, k, skip, pre_gate=None, post_gate=None, keep=None):
        if keep is not None:
            raise NotImplementedError("which torch's reference is, if many frequencies are kept")
        w = u if pre_gate is None else u * pre_gate
        y = by_fft(w.float(), k) + skip[:, None] * w
        return (y if post_gate is None else y * post_gate).to(u.dtype)

    return {"cuFFT": rfft}
