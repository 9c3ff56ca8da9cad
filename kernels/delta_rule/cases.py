"""Shapes of flash-linear-attention's benchmark (with its 8192-token first), and of MAD's stacks: one head and 16."""
# pyright: reportMissingImports=false

import torch
import torch.nn.functional as F

from kernels.cases import Work, installed

SHAPES = [
    {"B": b, "H": h, "T": t, "d": d, "gated": gated}
    for b, h, t, d in (
        (128, 1, 128, 128),
        (128, 1, 1280, 128),
        (128, 16, 128, 8),
        (1, 96, 8192, 128),
        (2, 16, 16384, 128),
        (4, 16, 2048, 128),
        (4, 64, 4096, 64),
        (8, 8, 1024, 64),
    )
    for gated in (False, True)
]
CONFIGS = [
    {"B": 1, "H": 2, "T": t, "d": d, "dv": dv, "gated": gated, "state": gated}
    for t, d, dv, gated in (
        (256, 128, 128, True),
        (200, 64, 64, True),
        (200, 32, 32, True),
        (256, 128, 128, False),
        (256, 64, 64, False),
        (64, 24, 100, True),
        (64, 16, 16, True),
        (64, 8, 8, False),
        (32, 128, 128, True),
        (32, 32, 32, True),
        (16, 128, 128, True),
        (16, 8, 8, True),
    )
]


def tensors(shape: dict, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    size = (shape["B"], shape["H"], shape["T"])
    width = shape.get("dv", shape["d"])
    q, k = torch.randn(2, *size, shape["d"], dtype=dtype, device=device)
    given = {"q": q, "k": F.normalize(k, dim=-1), "v": torch.randn(*size, width, dtype=dtype, device=device)}
    given["beta"] = torch.rand(size, dtype=dtype, device=device)
    if shape["gated"]:
        given["decay"] = F.logsigmoid(torch.randn(size, device=device)) / 16
    if shape.get("state"):
        given["initial_state"] = torch.zeros(*size[:2], shape["d"], width, device=device)
    return given


def call(tensors: dict[str, torch.Tensor], backend: str):
    from kernels.delta_rule import delta_rule

    return delta_rule(**tensors, return_state="initial_state" in tensors, backend=backend)


def work(shape: dict, size: int, backward: bool) -> Work:
    """Reads q, k, v (and dy), writes y (or dq, dk, dv); in chunks of 64, three products with the state a token."""
    tokens = shape["B"] * shape["H"] * shape["T"]
    d, dv = shape["d"], shape.get("dv", shape["d"])
    chunk = min(64, shape["T"])
    passes = 2 if backward else 1
    moved = (4 * d + 3 * dv if backward else 2 * d + 2 * dv) * size + passes * (4 * shape["gated"] + size)
    return Work(bytes=tokens * moved, flops=tokens * passes * (6 * d * dv + 2 * chunk * (d + dv)))


def rivals():
    if not installed("fla"):
        return {}

    def prepare(tensors):
        """(B, T, H, d), as flash-linear-attention has it."""
        return {name: t.transpose(1, 2).contiguous() for name, t in tensors.items()}

    def fla(q, k, v, beta, decay=None):
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        if decay is None:
            return chunk_delta_rule(q, k, v, beta, scale=1.0)[0]
        return chunk_gated_delta_rule(q, k, v, decay, beta, scale=1.0)[0]

    return {"fla": (prepare, fla)}
