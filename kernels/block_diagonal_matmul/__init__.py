"""Product with a block-diagonal matrix: Monarch Mixer's channel mixing, one Monarch factor."""

import torch

from kernels.checks import check_backend


def block_diagonal_matmul(x: torch.Tensor, w: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Block g of the features is multiplied by w[g] alone.

    Args:
        x: (..., G * I).
        w: (G, I, O).
        backend: "auto" | "torch".

    Returns:
        (..., G * O).

    Raises:
        ValueError: x's last dimension is not G * I, or an unknown backend.
    """
    check_backend(backend)
    blocks, width, out = w.shape
    if x.shape[-1] != blocks * width:
        raise ValueError(f"expected a last dimension of {blocks} x {width} = {blocks * width}, got {x.shape[-1]}")
    by_block = x.reshape(-1, blocks, width).transpose(0, 1)  # (G, N, I)
    return torch.bmm(by_block, w).transpose(0, 1).reshape(*x.shape[:-1], blocks * out)
