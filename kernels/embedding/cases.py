"""Shapes of the MAD protocol, batch 128 and dim 128: vocabularies of 16 to 128, sequences of 32 to 1,024 tokens."""

import torch
import torch.nn.functional as F

from kernels.cases import Work

SHAPES = [
    {"B": 128, "T": length, "V": vocab, "d": 128} for length, vocab in ((32, 16), (128, 16), (128, 128), (1024, 16))
]
CONFIGS = [
    {"B": 200, "T": 100, "V": vocab, "d": dim}
    for vocab, dim in ((256, 128), (64, 128), (32, 64), (16, 128), (32, 32), (10, 20))
] + [{"B": 2, "T": 9, "V": 5, "d": 12}]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.randn(shape["V"], shape["d"], dtype=dtype, device=device),
        "tokens": torch.randint(shape["V"], (shape["B"], shape["T"]), device=device),
    }


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """Tokens in, and their vectors out; backward, the vectors' gradients in."""
    tokens = shape["B"] * shape["T"]
    return Work(bytes=tokens * (8 + shape["d"] * size) + shape["V"] * shape["d"] * size, flops=0)


def rivals():
    return {"F.embedding": lambda weight, tokens: F.embedding(tokens, weight)}
