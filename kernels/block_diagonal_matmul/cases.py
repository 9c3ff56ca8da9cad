"""Shapes of MAD's channel mixer (dim 128, width 512, 4 blocks) and of M2-BERT's (768 to 3,072)."""

import torch

from kernels.cases import Work

SHAPES = [
    {"N": 128 * 128, "G": 4, "I": 32, "O": 128},
    {"N": 128 * 128, "G": 4, "I": 128, "O": 32},
    {"N": 16 * 4096, "G": 4, "I": 192, "O": 768},
    {"N": 16 * 4096, "G": 4, "I": 768, "O": 192},
]
CONFIGS = [{"N": 40, "G": 4, "I": 32, "O": 128}, {"N": 200, "G": 2, "I": 16, "O": 48}]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    x = torch.randn(shape["N"], shape["G"] * shape["I"], dtype=dtype, device=device)
    w = torch.randn(shape["G"], shape["I"], shape["O"], dtype=dtype, device=device) * shape["I"] ** -0.5
    return {"x": x, "w": w}


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """Forward: inputs and blocks in, outputs out. Backward: those and dy in, dx and dw out; twice the products."""
    inputs, outputs = (shape["N"] * shape["G"] * shape[key] for key in "IO")
    blocks = shape["G"] * shape["I"] * shape["O"]
    moved = 2 * (inputs + blocks) + outputs if backward else inputs + blocks + outputs
    return Work(bytes=moved * size, flops=(4 if backward else 2) * shape["N"] * blocks)


def rivals():
    def einsum(x, w):
        return torch.einsum("ngi,gio->ngo", x.unflatten(-1, w.shape[:2]), w).flatten(-2)

    return {"einsum": einsum}
