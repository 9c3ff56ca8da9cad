"""The delta rule with a diagonal-plus-low-rank transition: what is read, what is overwritten and what decays apart."""

from typing import Any

import torch

from kernels.checks import check_attention, use_triton
from kernels.dplr_delta_rule import reference


def dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Any:  # a tensor, or with return_state a pair
    """S[t] = (diag(exp(decay[t])) + b[t] a[t]^T) S[t-1] + k[t] v[t]^T, y[t] = S[t]^T q[t].

    The generalised delta rule of RWKV-7 (Peng et al. 2025, arXiv 2503.14456, section 3), where a = -kappa and b = kappa
    alpha for a unit vector kappa. What a reads, S[t-1]^T a[t], is read before the state decays, and a channel of the
    state's keys has a decay of its own. With a = 0 this is gated linear attention; the delta rule with step sizes
    beta has a = k, b = -beta exp(g) k and beta k for k, where g is its decay, the same in all channels.

    Nothing is normalised and q is not scaled: that is the caller's. Whether the recurrence is stable is up to a and b.

    Args:
        q, k, a, b: (B, H, T, d).
        v: (B, H, T, dv).
        decay: natural logarithms of the factors, at most 0, (B, H, T, d): a row of S each. -inf forgets all. The sign
            is not checked: that would wait for the device.
        initial_state: S before the first token, (B, H, d, dv). Zeros if None.
        return_state: return S after the last token too.
        backend: "auto" | "torch" | "triton". Triton holds d and dv of at most 256; "auto" takes torch beyond.

    Returns:
        (B, H, T, dv), of v's type; with `return_state` the state too, (B, H, d, dv), fp32. Everything is computed in
        fp32, or in fp64 where v is fp64. Gradients flow to all tensors, through the state as well.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or "triton" beyond its sizes.
    """
    check_attention(q, k, v)
    for name, given in (("a", a), ("b", b), ("decay", decay)):
        if given.shape != q.shape:
            raise ValueError(f"expected {name} {tuple(q.shape)}, as q, got {tuple(given.shape)}")
    state = (*q.shape[:2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"expected initial_state {state}, got {tuple(initial_state.shape)}")
    options = {"initial_state": initial_state, "return_state": return_state}
    if use_triton(backend, q, k, v, a, b, decay, initial_state, width=max(q.shape[3], v.shape[3])):
        if q.numel() and v.numel():
            from kernels.dplr_delta_rule import triton

            return triton.dplr_delta_rule(q, k, v, a, b, decay, **options)
        if backend == "triton":
            raise ValueError(
                f"backend='triton' takes no empty tensors, got q {tuple(q.shape)} and v {tuple(v.shape)}; "
                "use backend='auto'"
            )
    return reference.dplr_delta_rule(q, k, v, a, b, decay, **options)
