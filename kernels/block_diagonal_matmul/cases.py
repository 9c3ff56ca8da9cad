"""Shapes of MAD's channel mixer (dim 128, width 512, 4 blocks) and of M2-BERT's (768 to 3,072).

With an activation they are those of `block_diagonal_glu`.
"""

from typing import Any

import torch

import kernels
from kernels.cases import Work
from kernels.checks import ACTIVATIONS

SHAPES = [
    {"N": 128 * 128, "G": 4, "I": 32, "O": 128},
    {"N": 128 * 128, "G": 4, "I": 128, "O": 32},
    {"N": 16 * 4096, "G": 4, "I": 192, "O": 768},
    {"N": 16 * 4096, "G": 4, "I": 768, "O": 192},
    {"N": 128 * 128, "G": 4, "I": 32, "O": 128, "activation": "gelu"},
    {"N": 16 * 4096, "G": 4, "I": 192, "O": 768, "activation": "gelu"},
]
CONFIGS = [
    {"N": 130, "G": 2, "I": 100, "O": 128, "activation": "gelu"},
    {"N": 130, "G": 2, "I": 100, "O": 128},
    {"N": 130, "G": 2, "I": 32, "O": 128, "activation": "silu"},
    {"N": 130, "G": 2, "I": 32, "O": 128, "activation": "gelu"},
    {"N": 130, "G": 2, "I": 32, "O": 128},
    {"N": 130, "G": 2, "I": 128, "O": 32},
    {"N": 40, "G": 4, "I": 32, "O": 128},
    {"N": 200, "G": 2, "I": 16, "O": 48},
]


def tensors(shape: dict, dtype: torch.dtype, device: str) -> dict[str, Any]:
    def blocks():
        return torch.randn(shape["G"], shape["I"], shape["O"], dtype=dtype, device=device) * shape["I"] ** -0.5

    x = torch.randn(shape["N"], shape["G"] * shape["I"], dtype=dtype, device=device)
    if "activation" in shape:
        return {"x": x, "gate": blocks(), "value": blocks(), "activation": shape["activation"]}
    return {"x": x, "w": blocks()}


def call(tensors: dict[str, Any], backend: str) -> torch.Tensor:
    function = kernels.block_diagonal_glu if "gate" in tensors else kernels.block_diagonal_matmul
    return function(**tensors, backend=backend)


def work(shape: dict, size: int, backward: bool) -> Work:
    """Forward: inputs and blocks in, outputs out. Backward: those and dy in, dx and dw out; twice the products."""
    inputs, outputs = (shape["N"] * shape["G"] * shape[key] for key in "IO")
    blocks = shape["G"] * shape["I"] * shape["O"] * (2 if "activation" in shape else 1)
    moved = 2 * (inputs + blocks) + outputs if backward else inputs + blocks + outputs
    return Work(bytes=moved * size, flops=(4 if backward else 2) * shape["N"] * blocks)


def rivals():
    def product(x, w):
        return torch.einsum("ngi,gio->ngo", x.unflatten(-1, w.shape[:2]), w).flatten(-2)

    def einsum(x, w=None, gate=None, value=None, activation=None):
        return product(x, w) if activation is None else ACTIVATIONS[activation](product(x, gate)) * product(x, value)

    return {"einsum": einsum}
