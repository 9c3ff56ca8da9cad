"""Long causal convolution, gated: the heart of Hyena, RTF and Monarch Mixer."""

import torch
import torch.nn.functional as F

from kernels.checks import check_whole, use_triton
from kernels.fft_conv import reference


def fft_conv(
    u: torch.Tensor,
    k: torch.Tensor,
    *,
    skip: torch.Tensor | None = None,
    pre_gate: torch.Tensor | None = None,
    post_gate: torch.Tensor | None = None,
    keep: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """y[t] = post_gate[t] * (sum_j k[j] w[t - j] + skip w[t]) with w = pre_gate * u, per batch row and channel.

    Args:
        u: (B, H, L).
        k: (H, K); k[:, j] multiplies the token j steps back. Taps beyond L have no effect; none is one of zero.
        skip: (H,), a direct path beside the convolution.
        pre_gate, post_gate: (B, H, L).
        keep: drop all frequencies of the filter (skip included) but the lowest `keep`, of the power of two at least 2 L
            that its FFT has: it then reaches into the future, too. (FlashFFTConv's frequency-sparse convolution.) More
            than half of the points are all there are.
        backend: "auto" | "torch" | "triton".

    Returns:
        (B, H, L), of u's type. torch computes in fp32, or in fp64 where u is fp64. Triton rounds operands to u's type
        and sums in fp32: by Toeplitz products, which cost in proportion to K where K < L, or for long filters by
        Fourier transforms of blocks of 4,096 or 8,192 tokens (in fp16, scaled), whose spectra meet as often as K has
        blocks; with `keep`, by transforms that compute the kept frequencies alone. All do on matrix units what Fu et
        al. 2023 (FlashFFTConv, arXiv 2311.05908) do.

    Raises:
        ValueError: shapes that do not fit together, keep below 1, or an unknown backend.
    """
    if u.dim() != 3 or k.dim() != 2 or k.shape[0] != u.shape[1]:
        raise ValueError(f"expected u (B, H, L) and k (H, K), got {tuple(u.shape)} and {tuple(k.shape)}")
    for name, gate in (("pre_gate", pre_gate), ("post_gate", post_gate)):
        if gate is not None and gate.shape != u.shape:
            raise ValueError(f"expected {name} of u's shape {tuple(u.shape)}, got {tuple(gate.shape)}")
    if skip is not None and skip.shape != k.shape[:1]:
        raise ValueError(f"expected skip ({k.shape[0]},), got {tuple(skip.shape)}")
    if keep is not None:
        check_whole(keep=keep)
    if k.shape[1] == 0:
        k = F.pad(k, (0, 1))
    runs = use_triton(backend, u, k, skip, pre_gate, post_gate)
    if keep is not None and 2 * keep > reference.spectral_points(u.shape[2]):
        keep = None  # nothing is dropped
    if runs and u.numel():
        from kernels.fft_conv import triton

        if backend == "triton" or triton.pays(u, k, keep):
            return triton.fft_conv(u, k, skip=skip, pre_gate=pre_gate, post_gate=post_gate, keep=keep)
    return reference.fft_conv(u, k, skip=skip, pre_gate=pre_gate, post_gate=post_gate, keep=keep)
