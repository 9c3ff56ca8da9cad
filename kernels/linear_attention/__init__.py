"""Causal linear attention over features that are already mapped."""

import torch

from kernels.backend import check_backend
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
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or v.dim() != 4:
        raise ValueError(
            f"expected q, k (B, H, T, F) and v (B, H, T, dv), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    return reference.linear_attention(q, k, v, normalize=normalize, eps=eps)
