"""Shapes of flash-linear-attention's benchmark, and of MAD: one head and 16, Hadamard and Hedgehog features."""
# pyright: reportMissingImports=false

from typing import Any

import torch

from kernels.cases import Work, installed

SHAPES = [
    {"B": 128, "H": 1, "T": 128, "F": 128, "dv": 128, "decay": "none", "normalize": True},
    {"B": 128, "H": 1, "T": 1280, "F": 256, "dv": 128, "decay": "none", "normalize": True},
    {"B": 128, "H": 16, "T": 128, "F": 8, "dv": 8, "decay": "none", "normalize": True},
    *(
        {"B": b, "H": h, "T": t, "F": d, "dv": d, "decay": decay, "normalize": False}
        for b, t, h, d in ((1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128), (4, 4096, 64, 128))
        for decay in ("none", "scalar", "channel")
    ),
]
CONFIGS = [
    {"B": 1, "H": 1, "T": t, "F": f, "dv": dv, "decay": decay, "normalize": normalize}
    for t, f, dv, normalize in (
        (128, 64, 64, True),
        (100, 16, 64, True),
        (128, 64, 64, False),
        (128, 8, 8, True),
        (32, 32, 32, True),
        (16, 8, 8, True),
    )
    for decay in ("channel", "scalar", "none")
]


def tensors(shape: dict, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    batch, heads, length, features = (shape[n] for n in ("B", "H", "T", "F"))
    q, k = torch.rand(2, batch, heads, length, features, dtype=dtype, device=device) * features**-0.5
    given = {"q": q, "k": k, "v": torch.randn(batch, heads, length, shape["dv"], dtype=dtype, device=device)}
    if shape["decay"] != "none":
        size = (batch, heads, length, features) if shape["decay"] == "channel" else (batch, heads, length)
        given["decay"] = torch.nn.functional.logsigmoid(torch.randn(size, device=device)) / 16
    if shape["normalize"]:  # says so by a state with a column for the sum of the keys
        given["initial_state"] = torch.zeros(batch, heads, features, shape["dv"] + 1, device=device)
    return given


def call(tensors: dict[str, Any], backend: str):
    from kernels.linear_attention import linear_attention

    return linear_attention(**tensors, normalize="initial_state" in tensors, return_state=True, backend=backend)


def work(shape: dict, size: int, backward: bool) -> Work:
    """Reads q, k, v (and dy), writes y (or dq, dk, dv): within chunks of 64 by scores, else by the state."""
    tokens = shape["B"] * shape["H"] * shape["T"]
    features, width = shape["F"], shape["dv"]
    gates = {"none": 0, "scalar": 1, "channel": features}[shape["decay"]]
    passes = 2 if backward else 1
    moved = 2 * passes * (features + width) * size + 4 * gates * passes
    return Work(
        bytes=tokens * moved,
        flops=tokens * passes * (4 * features * width + 64 * (features + width)),
        exps=tokens * gates * passes,
    )


def rivals():
    if not installed("fla"):
        return {}

    def prepare(tensors):
        """(B, T, H, d), as flash-linear-attention has it. A state of zeros is what it starts from by itself."""
        return {n: t.transpose(1, 2).contiguous() if n in "qkv" or n == "decay" else t for n, t in tensors.items()}

    def fla(q, k, v, decay=None, initial_state=None):
        from fla.ops.gla import chunk_gla
        from fla.ops.linear_attn import chunk_linear_attn
        from fla.ops.simple_gla import chunk_simple_gla

        if decay is None:
            return chunk_linear_attn(q, k, v, scale=1.0, normalize=initial_state is not None)[0]
        return (chunk_gla if decay.dim() == 4 else chunk_simple_gla)(q, k, v, g=decay, scale=1.0)[0]

    return {"fla": (prepare, fla)}
