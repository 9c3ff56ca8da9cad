"""Causal linear attention over features that are already mapped, with or without decay."""

from typing import Any

import torch

from kernels.checks import check_attention, use_triton
from kernels.linear_attention import reference


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    decay: torch.Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-12,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Any:  # a tensor, or with return_state a pair
    """S[t] = exp(decay[t]) S[t-1] + k[t]^T v[t], y[t] = q[t] S[t]; `normalize`: y[t] / (eps + sum of its weights).

    Without decay y[t] = sum_{s <= t} (q[t].k[s]) v[s]: Katharopoulos et al. 2020 (arXiv 2006.16236). A decay a token is
    that of RetNet (arXiv 2307.08621) and SSD (arXiv 2405.21060), one a channel that of GLA (arXiv 2312.06635). The sum
    of the weights is the same recurrence with v = 1: one more column of the state.

    Args:
        q, k: features (B, H, T, F).
        v: (B, H, T, dv).
        decay: natural logarithms of the factors, at most 0: (B, H, T), or a channel of the state (B, H, T, F), where
            each row of S has its own. -inf forgets all. Not checked: that would wait for the device.
        normalize: divide by eps + the sum of the weights.
        initial_state: S before the first token, (B, H, F, dv), with `normalize` (B, H, F, dv + 1): the last column is
            the running sum of the keys. Zeros if None.
        return_state: return S after the last token too, shaped as `initial_state`.
        backend: "auto" | "torch" | "triton".

    Returns:
        (B, H, T, dv), of v's type; with `return_state` the state too, fp32. Sums are taken in fp32, or in fp64 where v
        is fp64. Gradients flow to all tensors, through the state as well.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    check_attention(q, k, v)
    batch, heads, length, features = q.shape
    if decay is not None and decay.shape not in ((batch, heads, length), tuple(q.shape)):
        raise ValueError(
            f"expected decay {(batch, heads, length)} or {tuple(q.shape)} for q {tuple(q.shape)}, "
            f"got {tuple(decay.shape)}"
        )
    state = (batch, heads, features, v.shape[3] + bool(normalize))
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"expected initial_state {state} with normalize={normalize}, got {tuple(initial_state.shape)}")
    options: dict[str, Any] = dict(
        decay=decay, normalize=normalize, eps=eps, initial_state=initial_state, return_state=return_state
    )
    if use_triton(backend, q, k, v, decay, initial_state) and q.numel() and v.numel():
        from kernels.linear_attention import triton

        return triton.linear_attention(q, k, v, **options)
    return reference.linear_attention(q, k, v, **options)
