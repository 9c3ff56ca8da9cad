"""Long convolution in plain torch: a Toeplitz matrix product for short sequences, an FFT for long ones.

Up to `TOEPLITZ_MAX` tokens a product with the (L, L) matrix of the filter beats an FFT on a CPU, although it does more
arithmetic (`python -m mad.bench step` compares them). Tensors whose storage is channel-first, (H, B, L), are read
without a copy: pass them transposed.
"""

import torch
import torch.nn.functional as F

TOEPLITZ_MAX = 192


def fft_conv(
    u: torch.Tensor,
    k: torch.Tensor,
    *,
    skip: torch.Tensor | None = None,
    pre_gate: torch.Tensor | None = None,
    post_gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """See kernels.fft_conv."""
    dtype = u.dtype
    length = u.shape[-1]
    w = u if pre_gate is None else u * pre_gate
    k = k[:, :length]
    with torch.autocast(u.device.type, enabled=False):
        w, k = _wide(w), _wide(k)
        if skip is not None:  # the direct path is one more weight on tap 0
            k = torch.cat([k[:, :1] + _wide(skip).unsqueeze(-1), k[:, 1:]], dim=-1)
        y = by_toeplitz(w, k) if length <= TOEPLITZ_MAX else by_fft(w, k)
    y = y.to(dtype)
    return y if post_gate is None else y * post_gate


def by_toeplitz(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """u (B, H, L), k (H, K <= L) -> (B, H, L), as one (B, L) x (L, L) product a channel."""
    return torch.bmm(u.transpose(0, 1), toeplitz(k, u.shape[-1])).transpose(0, 1)


def by_fft(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """u (B, H, L), k (H, K <= L) -> (B, H, L), through a real FFT of a length that does not wrap around."""
    length = u.shape[-1]
    n = friendly_length(length + k.shape[-1] - 1)
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., :length]


def toeplitz(k: torch.Tensor, length: int) -> torch.Tensor:
    """k (H, K <= L) -> (H, L, L) with [s, t] = k[t - s], zero where t < s: a row vector times it is the convolution."""
    return _Toeplitz.apply(k, length)


class _Toeplitz(torch.autograd.Function):
    """In rows of 2L elements, stepping 2L + 1 from row to row walks along the diagonals: one copy fills them all."""

    @staticmethod
    def forward(ctx, k: torch.Tensor, length: int) -> torch.Tensor:
        ctx.taps = k.shape[-1]
        rows = k.new_zeros(k.shape[0], length, 2 * length)  # the right half takes what runs over the edge
        _diagonals(rows, ctx.taps).copy_(k.unsqueeze(1).expand(-1, length, -1))
        return rows[:, :, :length]

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


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
