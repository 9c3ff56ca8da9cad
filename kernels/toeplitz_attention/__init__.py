"""Attention whose weights are scores times a long filter of their distance: multi-head Hyena's convolution."""

import torch
import torch.nn.functional as F

from kernels.checks import check_attention, use_triton
from kernels.toeplitz_attention import reference


def toeplitz_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """y[t] = sum_{s <= t} taps[t - s] (q[t].k[s]) v[s]: a causal filter for each head, no scale, no normaliser.

    Equals q[t]^T times the long convolution of the outer products k[s] v[s]^T with the filter, which is how
    Massaroli et al. 2023 (MultiHyena, arXiv 2310.18780) write it. Layouts with tokens next to each other in memory
    (channel-first, transposed) are read as they lie, and y is laid out as v.

    Args:
        q, k: (B, H, T, d).
        v: (B, H, T, dv).
        taps: (H, K), fp32: taps[:, j] weighs the token j steps back; those beyond T have no effect, and tokens K or
            more steps back none on y (their blocks are not visited); none is one of zero.
        backend: "auto" | "torch" | "triton". "auto" takes torch for heads wider than 128, in fp32 than 64.

    Returns:
        (B, H, T, dv), of v's type; sums in fp32 (torch: in the type of the data).

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    check_attention(q, k, v)
    if taps.dim() != 2 or taps.shape[0] != q.shape[1]:
        raise ValueError(f"expected taps (H, K) of {q.shape[1]} heads, got {tuple(taps.shape)}")
    if taps.shape[1] == 0:
        taps = F.pad(taps, (0, 1))
    width = max(q.shape[3], v.shape[3])
    widest = 64 if v.dtype == torch.float32 else 128  # what fits into registers
    if use_triton(backend, q, k, v, taps, width=width, widest=widest) and q.numel() and v.numel():
        from kernels.toeplitz_attention import triton

        return triton.toeplitz_attention(q, k, v, taps)
    return reference.toeplitz_attention(q, k, v, taps)
