"""Shapes of ThunderKittens' benchmark (B = H = 16, d 16, dv 64), of BASED's prefill and of MAD's stacks."""
# pyright: reportMissingImports=false

from typing import Any

import torch

import kernels
from kernels.cases import Work, installed
from kernels.taylor_attention import packed_size

SHAPES = [
    {"B": 128, "H": 1, "T": 128, "d": 16, "dv": 128},
    {"B": 128, "H": 1, "T": 1280, "d": 16, "dv": 128},
    *({"B": 16, "H": 16, "T": t, "d": 16, "dv": 64} for t in (1024, 2048, 4096, 8192, 12288)),
    {"B": 4, "H": 16, "T": 8192, "d": 16, "dv": 112},
    {"B": 128, "H": 16, "d": 16, "dv": 64, "step": True},
]
CONFIGS = [
    *(
        {"B": 1, "H": 1, "T": t, "d": d, "dv": dv}
        for t, d, dv in (
            (8192, 16, 64),
            (640, 16, 64),
            (1024, 16, 128),
            (100, 64, 64),
            (128, 16, 64),
            (32768, 32, 64),
            (1024, 8, 16),
            (32, 16, 32),
            (16, 8, 8),
        )
    ),
    *({"B": 2, "H": 2, "d": d, "dv": dv, "step": True} for d, dv in ((64, 64), (16, 64), (16, 100), (24, 32), (8, 8))),
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    batch, heads = shape["B"], shape["H"]
    if shape.get("step"):
        q, k = torch.randn(2, batch, heads, shape["d"], dtype=dtype, device=device)
        state = torch.rand(batch, heads, packed_size(shape["d"]), shape["dv"] + 1, device=device)
        return {"q": q, "k": k, "v": torch.randn(batch, heads, shape["dv"], dtype=dtype, device=device), "state": state}
    length = shape["T"]
    q, k = torch.randn(2, batch, heads, length, shape["d"], dtype=dtype, device=device)
    return {"q": q, "k": k, "v": torch.randn(batch, heads, length, shape["dv"], dtype=dtype, device=device)}


def call(tensors: dict[str, Any], backend: str):
    function = kernels.taylor_step if "state" in tensors else kernels.taylor_attention
    return function(**tensors, backend=backend)


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """By pairs, or by features and pairs within chunks of 64, whichever is less. At a step the state, in and out."""
    d, width, passes = shape["d"], shape["dv"], 2 if backward else 1
    features = packed_size(d)
    if shape.get("step"):
        state = shape["B"] * shape["H"] * features * (width + 1)
        return Work(bytes=8 * state, flops=4 * state)
    tokens = shape["B"] * shape["H"] * shape["T"]
    flops = min(shape["T"] * (d + width), 64 * (d + width) + 4 * features * width)
    return Work(bytes=tokens * passes * 2 * (d + width) * size, flops=tokens * passes * flops)


def rivals():
    if not installed("fla"):
        return {}

    def views(*heads_first):
        """(B, T, H, d) without a copy: these two turn them back to the layout that they work in. Laid out so by a
        `prepare` they would be copied there, and that would be timed."""
        return (t.transpose(1, 2) for t in heads_first)

    def fla(q, k, v):
        from fla.ops.based import fused_chunk_based

        return fused_chunk_based(*views(q, k, v))

    def pairs(q, k, v):
        from fla.ops.based import parallel_based

        return parallel_based(*views(q, k, v))

    return {"fla": fla, "fla, pairs": pairs}
