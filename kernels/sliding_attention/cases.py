"""Shapes: BASED's window of 129 keys in a language model, the MAD protocol's 33, and its narrow heads with no edge.

At a step T is not the sequence's length: there is one query.
"""

from typing import Any

import torch
import torch.nn.functional as F

import kernels
from kernels.cases import Work

SHAPES = [
    {"B": 128, "H": 1, "T": 128, "d": 128, "window": 33},
    {"B": 128, "H": 16, "T": 1024, "d": 8, "window": 33},
    {"B": 128, "H": 16, "T": 1024, "d": 8, "window": 1024},
    {"B": 4, "H": 16, "T": 8192, "d": 64, "window": 129},
    {"B": 1, "H": 16, "T": 32768, "d": 128, "window": 1024},
    {"B": 128, "H": 16, "d": 64, "window": 129, "step": True},
]
CONFIGS = [
    *(
        {"B": 1, "H": 2, "T": length, "d": d, "window": window}
        for length, window in ((300, 140), (70, 33), (256, 140), (256, 33), (256, 256))
        for d in (200, 128, 64, 32, 8)
    ),
    *({"B": 2, "H": 2, "d": d, "window": window, "step": True} for d in (200, 128, 64, 8) for window in (129, 20)),
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, Any]:
    heads, d, window = (shape["B"], shape["H"]), shape["d"], shape["window"]

    def streams(names, *size):
        return {name: torch.randn(*heads, *size, dtype=dtype, device=device) for name in names}

    if not shape.get("step"):
        return streams("qkv", shape["T"], d) | {"window": window}
    position = torch.arange(shape["B"], device=device) + window  # the ring is full
    return streams("qkv", d) | streams(("keys", "values"), window, d) | {"position": position}


def call(tensors: dict[str, Any], backend: str):
    if "window" in tensors:
        return kernels.sliding_attention(**tensors, backend=backend)
    q, k, v, keys, values, position = tensors.values()
    y, cache = kernels.sliding_step(q, k, v, (keys, values), position, backend=backend)
    return y, *cache


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """q, k, v in, y out, two products a visible key; backward also dy in, three gradients out, five products. At a step
    the ring, in and out."""
    if shape.get("step"):
        heads, d, window = shape["B"] * shape["H"], shape["d"], shape["window"]
        return Work(4 * heads * (window + 1) * d * size, flops=4 * heads * window * d, exps=heads * window)
    tokens, window = shape["B"] * shape["H"] * shape["T"], min(shape["window"], shape["T"])
    pairs = tokens * window - shape["B"] * shape["H"] * window * (window - 1) // 2
    streams, products = (8, 5) if backward else (4, 2)
    return Work(bytes=streams * tokens * shape["d"] * size, flops=2 * products * pairs * shape["d"], exps=pairs)


def rivals():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def prepare(tensors):
        window, length = tensors["window"], tensors["q"].shape[2]

        def visible(b, h, i, j):
            return (i >= j) & (i - j < window)

        mask = create_block_mask(visible, None, None, length, length, device=tensors["q"].device)
        return {name: tensors[name] for name in "qkv"} | {"mask": mask}

    def flex(q, k, v, mask):
        return compiled(q, k, v, block_mask=mask)

    def sdpa(q, k, v, window):
        """Causal attention over everything: what stock torch offers without a mask in memory."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return {"FlexAttention": (prepare, flex), "SDPA, all keys": sdpa}
