"""Causal linear attention over features that are already mapped."""

import torch

from kernels.checks import check_attention, check_backend
from kernels.linear_attention import reference


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    normalize: bool = True,
    eps: float = 1e-12,
    backend: str = "auto",
) -> torch.Tensor:
    """y[t] = sum_{s <= t} (q[t].k[s]) v[s], divided by eps + sum_{s <= t} q[t].k[s] if `normalize`.

    Katharopoulos et al. 2020 (arXiv 2006.16236).

    Args:
        q, k: features (B, H, T, F).
        v: (B, H, T, dv).
        backend: "auto" | "torch".

    Returns:
        (B, H, T, dv), of v's type; sums are taken in fp32, or in fp64 where v is fp64.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    check_backend(backend)
    check_attention(q, k, v)
    return reference.linear_attention(q, k, v, normalize=normalize, eps=eps)
