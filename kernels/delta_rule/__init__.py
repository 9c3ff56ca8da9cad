"""The delta rule, with or without decay: a linear attention that overwrites what a key held before."""

from typing import Any

import torch

from kernels.checks import check_attention, use_triton
from kernels.delta_rule import reference

LIMIT = 128  # width of keys whose state fits on chip beside a chunk of tokens; values are split into blocks


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Any:  # a tensor, or with return_state a pair
    """S' = exp(decay[t]) S[t-1], S[t] = S' + beta[t] k[t] (v[t] - S'^T k[t])^T, y[t] = S[t]^T q[t].

    In other words S[t] = exp(decay[t]) (I - beta[t] k[t] k[t]^T) S[t-1] + beta[t] k[t] v[t]^T: DeltaNet, chunkwise by
    Yang et al. 2024 (arXiv 2406.06484); with decay Gated DeltaNet (arXiv 2412.06464).

    Nothing is normalised and q is not scaled: that is the caller's. The recurrence is stable for beta |k|^2 within
    [0, 2], so keys usually have length 1.

    Args:
        q, k: (B, H, T, d).
        v: (B, H, T, dv).
        beta: how much of a key's value is replaced, (B, H, T).
        decay: natural logarithms of the state's factors, at most 0, (B, H, T). None: no decay; -inf forgets all. The
            sign is not checked: that would wait for the device.
        initial_state: S before the first token, (B, H, d, dv). Zeros if None.
        return_state: return S after the last token too.
        backend: "auto" | "torch" | "triton". Triton holds d at most 128; "auto" takes torch beyond.

    Returns:
        (B, H, T, dv), of v's type; with `return_state` the state too, (B, H, d, dv), fp32. Sums are taken in fp32, or
        in fp64 where v is fp64. Gradients flow to all tensors, through the state as well.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or "triton" beyond its sizes.
    """
    check_attention(q, k, v)
    batch, heads, length, width = q.shape
    for name, gate in (("beta", beta), ("decay", decay)):
        if gate is not None and gate.shape != (batch, heads, length):
            raise ValueError(
                f"expected {name} {(batch, heads, length)} for q {tuple(q.shape)}, got {tuple(gate.shape)}"
            )
    state = (batch, heads, width, v.shape[3])
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"expected initial_state {state}, got {tuple(initial_state.shape)}")
    options = {"initial_state": initial_state, "return_state": return_state}
    if use_triton(backend, q, k, v, beta, decay, initial_state):
        if width <= LIMIT and q.numel() and v.numel():
            from kernels.delta_rule import triton

            return triton.delta_rule(q, k, v, beta, decay, **options)
        if backend == "triton":
            raise ValueError(
                f"backend='triton' holds keys at most {LIMIT} wide and no empty tensors, "
                f"got q {tuple(q.shape)} and v {tuple(v.shape)}; use backend='auto'"
            )
    return reference.delta_rule(q, k, v, beta, decay, **options)
