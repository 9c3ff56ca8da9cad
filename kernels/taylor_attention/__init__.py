"""BASED's attention: softmax's exponential replaced by its second-order Taylor polynomial."""

import torch

from kernels.checks import check_attention, use_triton
from kernels.taylor_attention import reference
from kernels.taylor_attention.reference import packed_features, packed_size

__all__ = ["packed_features", "packed_size", "taylor_attention", "taylor_step"]

WIDEST = 64  # queries and keys, for Triton


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
        backend: "auto" | "torch" | "triton". Triton takes d up to 64; beyond, "auto" takes torch.

    Returns:
        (B, H, T, dv), of v's type; sums are taken in fp32, or in fp64 where v is fp64.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or "triton" for d above 64.
    """
    check_attention(q, k, v)
    if use_triton(backend, q, k, v) and q.numel() and v.numel():
        if q.shape[3] <= WIDEST:
            from kernels.taylor_attention import triton

            return triton.taylor_attention(q, k, v, normalize=normalize, eps=eps)
        if backend == "triton":
            raise ValueError(f"backend='triton' takes d up to {WIDEST}, got q {tuple(q.shape)}; use backend='auto'")
    return reference.taylor_attention(q, k, v, normalize=normalize, eps=eps)


def taylor_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: torch.Tensor,
    *,
    normalize: bool = True,
    eps: float = 1e-12,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of `taylor_attention`: state += phi(k)^T v, y = phi(q) state, divided by the sum of the weights.

    phi is `packed_features`, whose inner products are the weights: state[f] belongs to its feature f.

    Args:
        q, k: (B, H, d).
        v: (B, H, dv).
        state: (B, H, packed_size(d), dv), with `normalize` (..., dv + 1): the last column is the sum of phi(k). fp32,
            zeros before the first token. It is not changed.
        normalize: divide by eps + the sum of the weights.
        backend: "auto" | "torch" | "triton". Triton has no gradients: "auto" takes torch where they are wanted.

    Returns:
        y (B, H, dv), of v's type, and the new state.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or "triton" where gradients are wanted.
    """
    if q.dim() != 3 or q.shape != k.shape or v.dim() != 3 or q.shape[:2] != v.shape[:2]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"expected q, k (B, H, d) and v (B, H, dv), got {shapes}")
    expected = (*q.shape[:2], packed_size(q.shape[2]), v.shape[2] + bool(normalize))
    if state.shape != expected:
        raise ValueError(f"expected state {expected} with normalize={normalize}, got {tuple(state.shape)}")
    if use_triton(backend, q, k, v, state, gradients=False) and v.numel():
        from kernels.taylor_attention import step

        return step.taylor_step(q, k, v, state, normalize=normalize, eps=eps)
    return reference.taylor_step(q, k, v, state, normalize=normalize, eps=eps)
