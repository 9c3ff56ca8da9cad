"""Hedgehog: linear attention over learned softmax features, alone or beside a sliding window of real softmax."""

import torch

from kernels.checks import check_attention, check_whole, use_triton
from kernels.hedgehog_attention import reference


def hedgehog_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    *,
    window: int | None = None,
    mix: tuple[torch.Tensor, torch.Tensor] | None = None,
    normalize: bool = True,
    eps: float = 1e-12,
    backend: str = "auto",
) -> torch.Tensor:
    """y[t] = sum_{s <= t} w[t, s] v[s] / (eps + sum_{s <= t} w[t, s]), w[t, s] = phi_q(q[t]).phi_k(k[s]).

    phi(x) = [softmax(x W), softmax(-x W)], W of each head: Zhang et al. 2024 (Hedgehog, arXiv 2402.04347). With a
    window, the newest `window` keys get w[t, s] = a exp(q[t].k[s] / sqrt(d) - m[t]) instead, m[t] the largest exponent
    in the window, and the older ones b phi_q(q[t]).phi_k(k[s]), under one normaliser: LoLCATs' hybrid (arXiv
    2410.10254), whose window moves in blocks of 64 where ours is exact for every token. m is not undone and is a
    constant to the gradient.

    Args:
        q, k: (B, H, T, d).
        v: (B, H, T, dv).
        w_q, w_k: (H, d, f): 2 f features.
        window: keys with softmax weights, the query's own included; None: none.
        mix: a and b, each (H,); 1 if None. Only with a window.
        normalize: divide by eps + the sum of the weights.
        backend: "auto" | "torch" | "triton".

    Returns:
        (B, H, T, dv), of v's type; softmaxes and sums in fp32, or in fp64 where v is fp64. Triton's cost a token: a
        state of 2 f dv, with a window also (window + 64) (2 f + d + dv). Without a window and up to 8 f tokens, heads
        too wide for fused features, or few long sequences, cost T (2 f + dv). The reference's window costs
        T (2 f + d + dv).

    Raises:
        ValueError: shapes that do not fit together, a mix without a window, or an unknown backend.
    """
    check_attention(q, k, v)
    heads, d = q.shape[1], q.shape[3]
    if w_q.dim() != 3 or w_q.shape != w_k.shape or w_q.shape[:2] != (heads, d):
        raise ValueError(
            f"expected w_q and w_k ({heads}, {d}, f) for q {tuple(q.shape)}, got {tuple(w_q.shape)} and "
            f"{tuple(w_k.shape)}"
        )
    if window is not None:
        check_whole(window=window)
    if mix is not None and window is None:
        raise ValueError("mix weighs a window against the features: it needs a window")
    if mix is not None and [m.shape for m in mix] != [(heads,)] * 2:
        raise ValueError(f"expected mix of two tensors ({heads},), got {[tuple(m.shape) for m in mix]}")
    options = {"window": window, "mix": mix, "normalize": normalize, "eps": eps}
    width = max(d, v.shape[3], 2 * w_q.shape[2])
    tensors = (q, k, v, w_q, w_k, *(mix or ()))
    if use_triton(backend, *tensors, width=width, widest=widest(v.dtype, window)) and v.numel():
        from kernels.hedgehog_attention import triton

        return triton.hedgehog_attention(q, k, v, w_q, w_k, **options)
    return reference.hedgehog_attention(q, k, v, w_q, w_k, **options)


def widest(dtype: torch.dtype, window: int | None) -> int:
    """Up to which width of heads and features the tiles of keys, features, values and gradients fit into registers."""
    if dtype == torch.float32:
        return 128 if window is None else 64
    return 256 if window is None else 128
