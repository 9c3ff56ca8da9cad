"""Toeplitz attention in plain torch: all pairs at once for short sequences, a long convolution for long ones.

Pairs take T^2 numbers a head, the outer products k v^T d dv T, through an FFT. Pairs are the faster up to a few
thousand tokens; beyond `PAIRS_UPTO` what counts is that they fit into memory.
"""

import torch

from kernels.fft_conv.reference import fft_conv, toeplitz

PAIRS_UPTO = 1024


def toeplitz_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """See kernels.toeplitz_attention."""
    length = q.shape[2]
    dtype = v.dtype
    q, k = q.to(dtype), k.to(dtype)
    if length <= max(PAIRS_UPTO, q.shape[3] * v.shape[3]):
        return by_pairs(q, k, v, taps[:, :length]).to(dtype)
    return by_outer_products(q, k, v, taps).to(dtype)


def by_pairs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Weights as (B, H, s, t): the filter's matrix and channel-first tensors then lie in memory as the products and
    the pass over the weights read them."""
    scores = k @ q.transpose(2, 3)  # (B, H, T, T)
    weights = scores * toeplitz(taps, q.shape[2]).to(scores.dtype)
    return (v.transpose(2, 3) @ weights).transpose(2, 3)


def by_outer_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """q^T (h conv (k v^T)), d dv channels a head."""
    q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (B, H, d, T)
    outer = (k.unsqueeze(3) * v.unsqueeze(2)).flatten(1, 3)  # (B, H d dv, T)
    mixed = fft_conv(outer, taps.repeat_interleave(k.shape[2] * v.shape[2], dim=0))
    mixed = mixed.unflatten(1, (k.shape[1], k.shape[2], v.shape[2]))
    return (q.unsqueeze(3) * mixed).sum(2).transpose(2, 3)
