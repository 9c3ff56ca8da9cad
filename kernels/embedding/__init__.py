"""Vectors of tokens, and their gradient without sorting the tokens."""

import torch

from kernels.checks import of_integers, use_triton
from kernels.embedding import reference
from kernels.embedding.reference import FEW


def embedding(weight: torch.Tensor, tokens: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """weight[tokens].

    torch's own gradient on a GPU sorts the tokens, which takes as long as a layer of a small model. With few vectors it
    is a product with a one-hot matrix, which Triton never writes to memory. Summed in fp32, in a fixed order. (The
    input embedding of Press and Wolf 2017, arXiv 1608.05859.)

    Args:
        weight: (V, D).
        tokens: (...) integers, 0 <= token < V.
        backend: "auto" | "torch" | "triton". "auto" takes Triton up to 256 vectors, which all that is looked up is
            multiplied with.

    Returns:
        (..., D), of weight's type. Tokens beyond the vocabulary raise an error on a CPU, and have NaN from Triton.

    Raises:
        ValueError: a weight that is no matrix, tokens that are no integers, or an unknown backend.
    """
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"expected weight (V, D), got {tuple(weight.shape)}")
    if not of_integers(tokens):
        raise ValueError(f"expected tokens to be integers, got {tokens.dtype}")
    if use_triton(backend, weight, tokens) and (backend == "triton" or len(weight) <= FEW):
        from kernels.embedding import triton

        return triton.embedding(weight, tokens)
    return reference.embedding(weight, tokens)
