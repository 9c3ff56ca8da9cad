"""Long convolution in plain torch: a Toeplitz matrix product for short sequences, an FFT for long ones.

Up to `TOEPLITZ_MAX` tokens a product with the (L, L) matrix of the filter beats an FFT on a CPU, although it does more
arithmetic (`python -m mad.bench step` compares them). Tensors whose storage is channel-first, (H, B, L), are read
without a copy: pass them transposed.
"""

import math

import torch
import torch.nn.functional as F

from kernels.checks import as_given, wide

TOEPLITZ_MAX = 192
PRODUCTS_UPTO = 4  # kept frequencies, over log2 of the points, up to which products cost less than an FFT


def fft_conv(
    u: torch.Tensor,
    k: torch.Tensor,
    *,
    skip: torch.Tensor | None = None,
    pre_gate: torch.Tensor | None = None,
    post_gate: torch.Tensor | None = None,
    keep: int | None = None,
) -> torch.Tensor:
    """See kernels.fft_conv."""
    dtype = u.dtype
    length = u.shape[-1]
    with as_given(u):
        w = wide(u)
        k = k[:, :length].to(w.dtype)
        if pre_gate is not None:
            w = w * pre_gate.to(w.dtype)
        if skip is not None:  # the direct path is one more weight on tap 0
            k = torch.cat([k[:, :1] + skip.to(w.dtype).unsqueeze(-1), k[:, 1:]], dim=-1)
        if not w.numel():
            y = w + k.sum()  # empty, and of no FFT
        elif keep is not None:
            y = by_low_frequencies(w, k, keep)
        else:
            y = by_toeplitz(w, k) if length <= TOEPLITZ_MAX else by_fft(w, k)
        return (y if post_gate is None else y * post_gate.to(y.dtype)).to(dtype)


def by_toeplitz(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """u (B, H, L), k (H, K <= L) -> (B, H, L), as one (B, L) x (L, L) product a channel."""
    return torch.bmm(u.transpose(0, 1), toeplitz(k, u.shape[-1])).transpose(0, 1)


def by_fft(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """u (B, H, L), k (H, K <= L) -> (B, H, L), through a real FFT of a length that does not wrap around."""
    length = u.shape[-1]
    n = friendly_length(length + k.shape[-1] - 1)
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., :length]


def by_low_frequencies(u: torch.Tensor, k: torch.Tensor, keep: int) -> torch.Tensor:
    """The filter without its frequencies from `keep` on, at most half of the `spectral_points(L)` that there are: not
    causal.

    Few frequencies are two products with cosines and sines, in which the others do not occur; many are an FFT.
    """
    length = u.shape[-1]
    n = spectral_points(length)
    if keep > PRODUCTS_UPTO * math.log2(n):
        low = torch.fft.rfft(u, n=n)[..., :keep] * torch.fft.rfft(k, n=n)[..., :keep]
        return torch.fft.irfft(F.pad(low, (0, n // 2 + 1 - keep)), n=n)[..., :length]
    f = torch.arange(keep, device=u.device)
    angle = (torch.outer(torch.arange(length, device=u.device), f) % n).double() * (2 * math.pi / n)  # (L, keep)
    c, s = angle.cos().to(u), angle.sin().to(u)
    weight = torch.where(f == 0, 1.0, 2.0).to(u) / n  # a frequency and its mirror image
    k_real, k_imag = k @ c[: k.shape[1]] * weight, k @ s[: k.shape[1]] * weight  # the sign of imag is left out of both
    u_real, u_imag = u @ c, u @ s  # (B, H, keep)
    return (u_real * k_real - u_imag * k_imag) @ c.t() + (u_real * k_imag + u_imag * k_real) @ s.t()


def spectral_points(length: int) -> int:
    """The power of two at least twice the length."""
    return 2 << max(0, length - 1).bit_length()


def toeplitz(k: torch.Tensor, length: int) -> torch.Tensor:
    """k (H, K <= L) -> (H, L, L) with [s, t] = k[t - s], zero where t < s: a row vector times it is the convolution."""
    return _Toeplitz.apply(k, length)


class _Toeplitz(torch.autograd.Function):
    """In rows of 2L elements, stepping 2L + 1 from row to row walks along the diagonals: one copy fills them all."""

    generate_vmap_rule = True

    @staticmethod
    def forward(k: torch.Tensor, length: int) -> torch.Tensor:
        rows = k.new_zeros(k.shape[0], length, 2 * length)  # the right half takes what runs over the edge
        _diagonals(rows, k.shape[-1]).copy_(k.unsqueeze(1).expand(-1, length, -1))
        return rows[:, :, :length]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.taps = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return _diagonals(F.pad(grad, (0, grad.shape[1])), ctx.taps).sum(1), None


def _diagonals(rows: torch.Tensor, taps: int) -> torch.Tensor:
    """A view (H, L, taps) of contiguous rows (H, L, 2L): [s, j] is the element in row s, column s + j."""
    channels, length, width = rows.shape
    return rows.as_strided((channels, length, taps), (length * width, width + 1, 1))


def friendly_length(n: int) -> int:
    """The smallest even FFT length >= n without prime factors above 5."""
    best = 1 << max(1, (n - 1).bit_length())
    for odd in (3, 5, 9, 15, 25, 27, 45, 75):
        length = 2 * odd
        while length < n:
            length *= 2
        best = min(best, length)
    return best
