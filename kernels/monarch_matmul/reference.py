"""The Monarch product in plain torch: two batched products."""

import torch


def monarch_matmul(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """See kernels.monarch_matmul."""
    w1, w2 = w1.to(x.dtype), w2.to(x.dtype)
    rows = x.shape[:-1].numel()
    y = torch.einsum("nkp,kqp->nkq", x.reshape(rows, w1.shape[0], w1.shape[2]), w1)  # (N, k, q)
    y = y.reshape(rows, w2.shape[2], w2.shape[0])  # (N, r, l)
    y = torch.einsum("nrl,lsr->nsl", y, w2)
    return y.reshape(*x.shape[:-1], y.shape[1] * y.shape[2])
