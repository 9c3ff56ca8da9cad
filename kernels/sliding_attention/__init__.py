"""Softmax attention over the newest keys alone: a causal window, and its ring buffer for decoding."""

import torch

from kernels.checks import check_attention, check_whole, mixed, use_triton
from kernels.sliding_attention import reference

NARROW = 32  # heads up to which plain causal attention, in 16 bits, is faster here than flash attention (on an H100)


def sliding_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, *, backend: str = "auto"
) -> torch.Tensor:
    """y[t] = sum_s softmax_s(q[t].k[s] / sqrt(d)) v[s] over t - window < s <= t; cost linear in T.

    The local attention of Child et al. 2019 (arXiv 1904.10509) and Longformer (arXiv 2004.05150), causal and exact.
    Blocks of keys out of sight are not visited, forward or backward.

    Args:
        q, k: (B, H, T, d).
        v: (B, H, T, dv).
        window: visible keys, the query's own included; T or more is plain causal attention.
        backend: "auto" | "torch" | "triton". "auto" leaves plain causal attention to scaled_dot_product_attention where
            heads are wider than 32, or data is fp32.

    Returns:
        (B, H, T, dv), of v's type, under autocast of its; softmax and sums in fp32 (torch: as
        scaled_dot_product_attention has them).

    Raises:
        ValueError: shapes that do not fit together, a window below 1, or an unknown backend.
    """
    check_attention(q, k, v)
    check_whole(window=window)
    v = mixed(v)
    q, k = mixed(q).to(v.dtype), mixed(k).to(v.dtype)
    if window >= q.shape[2]:
        widest = 0 if v.dtype == torch.float32 else NARROW
    else:
        widest = 128 if v.dtype == torch.float32 else 256  # what fits into registers
    if use_triton(backend, q, k, v, width=max(q.shape[-1], v.shape[-1]), widest=widest):
        from kernels.sliding_attention import triton

        return triton.sliding_attention(q, k, v, window)
    return reference.sliding_attention(q, k, v, window)


def sliding_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """One token of `sliding_attention`: the newest key takes the place of the oldest in a ring of `window` slots.

    For decoding (arXiv 2004.05150's window, as a buffer of fixed size).

    Args:
        q, k: (B, H, d).
        v: (B, H, dv).
        cache: keys (B, H, window, d) and values (B, H, window, dv); what is in slots not yet reached does not matter.
        position: (B,), int64: tokens before this one. A tensor, so that a captured graph can be replayed.
        backend: "auto" | "torch" | "triton". Triton has no gradients: "auto" takes torch where they are wanted.

    Returns:
        (B, H, dv), of v's type, and the next cache.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or "triton" where gradients are wanted.
    """
    keys, values = cache
    fitting = q.dim() == v.dim() == 3 and q.shape == k.shape and v.shape[:2] == q.shape[:2]
    if not fitting or position.shape != q.shape[:1]:
        raise ValueError(
            f"expected q, k (B, H, d), v (B, H, dv), position (B,), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, {tuple(position.shape)}"
        )
    slots = keys.shape[2] if keys.dim() == 4 else 0
    if (
        not slots
        or keys.shape != (*q.shape[:2], slots, q.shape[2])
        or values.shape != (*v.shape[:2], slots, v.shape[2])
    ):
        raise ValueError(
            f"expected a cache of keys (B, H, window, {q.shape[2]}) and values (B, H, window, {v.shape[2]}), got "
            f"{tuple(keys.shape)} and {tuple(values.shape)}"
        )
    tensors = (q, k, v, keys, values, position)
    if use_triton(backend, *tensors, width=max(q.shape[-1], v.shape[-1]), gradients=False):
        from kernels.sliding_attention.step import step

        y, keys, values = step(q, k, v, keys, values, position)
        return y, (keys, values)
    return reference.sliding_step(q, k, v, cache, position)
