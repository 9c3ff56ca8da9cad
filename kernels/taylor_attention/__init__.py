"""BASED's attention: softmax's exponential replaced by its second-order Taylor polynomial."""

import torch

from kernels.checks import check_attention, check_backend
from kernels.taylor_attention import reference
from kernels.taylor_attention.reference import packed_features, packed_size

__all__ = ["packed_features", "packed_size", "taylor_attention"]


def taylor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    normalize: bool = True,
    eps: float = 1e-12,
    backend: str = "auto",
) -> torch.Tensor:
    """y[t] = sum_{s <= t} p(q[t].k[s] / sqrt(d)) v[s], p(x) = 1 + x + x^2 / 2, divided by the sum of the weights.

    Arora et al. 2024 (BASED, arXiv 2402.18668). p is at least 1/2, so the sum never vanishes.

    Args:
        q, k: (B, H, T, d).
        v: (B, H, T, dv).
        normalize: divide by eps + the sum of the weights.
        backend: "auto" | "torch".

    Returns:
        (B, H, T, dv), of v's type; sums are taken in fp32, or in fp64 where v is fp64.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    check_backend(backend)
    check_attention(q, k, v)
    return reference.taylor_attention(q, k, v, normalize=normalize, eps=eps)
