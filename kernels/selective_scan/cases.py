"""Shapes of Mamba's benchmark (N 16, from 512 tokens up), and of MAD's stacks: width 128 expanded to 256."""
# pyright: reportMissingImports=false

import torch
import torch.nn.functional as F

from kernels.cases import Work, installed

SHAPES = [
    {"B": 128, "D": 256, "L": 128, "N": 16},
    {"B": 128, "D": 256, "L": 1280, "N": 16},
    *({"B": b, "D": 1024, "L": n, "N": 16} for b, n in ((16, 512), (8, 2048), (2, 8192), (1, 32768))),
    {"B": 8, "D": 5120, "L": 2048, "N": 16},
]
CONFIGS = [
    *({"B": 2, "D": 256, "L": n, "N": 16} for n in (200, 64)),
    {"B": 2, "D": 256, "L": 256, "N": 16, "plain": True},
    {"B": 2, "D": 4, "L": 128, "N": 16},
    *({"B": 2, "D": 256, "L": n, "N": 16} for n in (32, 16)),
    {"B": 2, "D": 3, "L": 16, "N": 5},
    *({"B": b, "D": 256, "L": n, "N": 16} for b, n in ((64, 128), (512, 16))),  # several blocks a program
]


def tensors(shape: dict, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    batch, channels, length, states = (shape[n] for n in ("B", "D", "L", "N"))
    kind = {"dtype": dtype, "device": device}
    given = {
        "u": torch.randn(batch, channels, length, **kind),
        "dt": F.softplus(torch.randn(batch, channels, length, **kind) - 4),
        "a": -torch.arange(1.0, states + 1, device=device).repeat(channels, 1),
        "b": torch.randn(batch, states, length, **kind),
        "c": torch.randn(batch, states, length, **kind),
    }
    if not shape.get("plain"):
        given["skip"] = torch.ones(channels, device=device)
        given["gate"] = torch.randn(batch, channels, length, **kind)
    return given


def work(shape: dict, size: int, backward: bool) -> Work:
    """Reads u, dt, gate (and dy), writes y (or their gradients); an exponential a state and token, b and c a token."""
    batch, channels, length, states = (shape[n] for n in ("B", "D", "L", "N"))
    tokens = batch * length
    moved = (7 if backward else 4) * channels + (4 if backward else 2) * states
    return Work(bytes=tokens * moved * size, flops=0, exps=tokens * channels * states)


def rivals():
    if not installed("mamba_ssm"):
        return {}

    def mamba(u, dt, a, b, c, skip=None, gate=None):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        return selective_scan_fn(u, dt, a, b, c, D=skip, z=gate)

    return {"mamba_ssm": mamba}
