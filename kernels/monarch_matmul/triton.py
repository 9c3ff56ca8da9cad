"""The Monarch product in Triton: the block-diagonal kernel twice, the permutations in its addresses."""

import torch

from kernels.block_diagonal_matmul.triton import product


def monarch_matmul(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """See kernels.monarch_matmul."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = product(rows, w1.to(x.dtype), True, [w1.shape[2], 1], [w1.shape[1], 1])
    y = product(y, w2.to(x.dtype), True, [1, w2.shape[0]], [1, w2.shape[0]])
    return y.view(*x.shape[:-1], y.shape[-1])
