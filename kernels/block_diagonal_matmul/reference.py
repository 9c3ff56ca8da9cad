"""Block-diagonal products in plain torch: a batched product over the blocks."""

import torch

from kernels.checks import ACTIVATIONS


def block_diagonal_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """See kernels.block_diagonal_matmul."""
    blocks, width, out = w.shape
    by_block = x.reshape(-1, blocks, width).transpose(0, 1)  # (G, N, I)
    return torch.bmm(by_block, w.to(x.dtype)).transpose(0, 1).reshape(*x.shape[:-1], blocks * out)


def block_diagonal_glu(x: torch.Tensor, gate: torch.Tensor, value: torch.Tensor, *, activation: str) -> torch.Tensor:
    """See kernels.block_diagonal_glu."""
    return ACTIVATIONS[activation](block_diagonal_matmul(x, gate)) * block_diagonal_matmul(x, value)
