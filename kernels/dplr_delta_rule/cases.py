"""Shapes of RWKV-7's own training (heads of 64, 4,096 tokens), and of its stacks in MQAR and MAD: width 128, two heads.

Inputs as RWKV-7's: what is read is a unit vector, written back in part; decays lie between exp(-exp(-0.5)) and 1.
"""
# pyright: reportMissingImports=false

import math

import torch
import torch.nn.functional as F

from kernels.cases import Work, installed

SHAPES = [
    {"B": 8, "H": 32, "T": 4096, "d": 64},
    {"B": 256, "H": 2, "T": 256, "d": 64},
    {"B": 128, "H": 2, "T": 128, "d": 64},
]
CONFIGS = [
    {"B": 1, "H": 2, "T": 20, "d": d, "dv": dv, "state": state}
    for d, dv, state in (
        (256, 256, True),
        (64, 64, False),
        (128, 128, True),
        (64, 64, True),
        (100, 24, True),
        (24, 32, True),
        (16, 200, True),
        (16, 16, False),
        (8, 8, True),
    )
]


def tensors(shape: dict, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    size = (shape["B"], shape["H"], shape["T"])
    keys, values = (*size, shape["d"]), (*size, shape.get("dv", shape["d"]))
    kappa = F.normalize(torch.randn(keys, device=device), dim=-1)
    given = {
        "q": torch.randn(keys, dtype=dtype, device=device),
        "k": torch.randn(keys, dtype=dtype, device=device) * shape["d"] ** -0.5,
        "v": torch.randn(values, dtype=dtype, device=device),
        "a": -kappa.to(dtype),
        "b": (kappa * torch.rand(keys, device=device)).to(dtype),
        "decay": -math.exp(-0.5) * torch.randn(keys, device=device).sigmoid(),
    }
    if shape.get("state"):
        given["initial_state"] = torch.zeros(*size[:2], shape["d"], values[-1], device=device)
    return given


def call(tensors: dict[str, torch.Tensor], backend: str):
    from kernels.dplr_delta_rule import dplr_delta_rule

    return dplr_delta_rule(**tensors, return_state="initial_state" in tensors, backend=backend)


def work(shape: dict, size: int, backward: bool) -> Work:
    """Reads q, k, v, a, b, the decays in fp32 (and dy), writes y (or the gradients); in chunks of 64, as matrix units
    would have it: four products with the state a token, and six within a chunk."""
    tokens = shape["B"] * shape["H"] * shape["T"]
    d, dv = shape["d"], shape.get("dv", shape["d"])
    chunk = min(64, shape["T"])
    passes = 2 if backward else 1
    moved = (8 * d + 3 * dv if backward else 4 * d + 2 * dv) * size + 4 * passes * d
    return Work(
        bytes=tokens * moved,
        flops=tokens * passes * (8 * d * dv + chunk * (4 * d + 2 * dv)),
        exps=tokens * passes * d,
    )


def rivals():
    if not installed("fla"):
        return {}

    def prepare(tensors):
        """(B, T, H, d), as flash-linear-attention has it."""
        return {name: t.transpose(1, 2).contiguous() for name, t in tensors.items()}

    def fla(q, k, v, a, b, decay):
        from fla.ops.rwkv7 import chunk_rwkv7

        return chunk_rwkv7(q, decay, k, v, a, b, scale=1.0, output_final_state=False)[0]

    return {"fla": (prepare, fla)}
