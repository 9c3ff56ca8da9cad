"""RTF's spectrum in plain torch; the division alone is replaced by Triton on a GPU."""

from collections.abc import Callable

import torch

from kernels.checks import as_given, wide


def rational_spectrum(a, b, h0, length: int, *, exact: bool, divide: Callable) -> torch.Tensor:
    """See kernels.rational_spectrum."""
    n = max(length, a.shape[1] + 1)
    n += n % 2
    with as_given(a):
        a, b, h0 = wide(a), wide(b), wide(h0)
        if exact:
            b, h0 = cut_off(a, b, h0, n)
        one = torch.ones_like(a[:, :1])
        zero = torch.zeros_like(b[:, :1])
        both = torch.cat([torch.cat([one, a], dim=-1), torch.cat([zero, b], dim=-1)])  # one FFT for both
        spectra = torch.fft.rfft(both, n=n)
        return divide(spectra[: a.shape[0]], spectra[a.shape[0] :], h0)


def divide(below: torch.Tensor, above: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    """above (D, F) / below (A, F) + h0 (D,), complex."""
    ratio = above.unflatten(0, (below.shape[0], -1)) / below.unsqueeze(1)
    return ratio.flatten(0, 1) + h0.unsqueeze(-1)


def cut_off(a: torch.Tensor, b: torch.Tensor, h0: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numerator and h0 whose taps folded onto n are the first n taps of (a, b, h0).

    Tap t >= 1 is b C^(t-1) e1 with C the companion matrix. Folding multiplies b by (I - C^n)^-1, so b (I - C^n) undoes
    it; what then still falls on tap 0, b C^(n-1) e1, is taken from h0.
    """
    order = a.shape[1]
    below = torch.diag_embed(torch.ones(order - 1, dtype=torch.float64, device=a.device), -1)  # the shift
    companion = torch.cat([-a.double().unsqueeze(1), below[1:].expand(a.shape[0], -1, -1)], dim=1)  # (A, N, N)
    power = torch.linalg.matrix_power(companion, n - 1)
    grouped = b.double().unflatten(0, (a.shape[0], -1))  # (A, D / A, N)
    folded = grouped @ power
    corrected = grouped - folded @ companion
    return corrected.flatten(0, 1).to(b.dtype), (h0.double() - folded[..., 0].flatten()).to(h0.dtype)
