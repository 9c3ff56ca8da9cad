"""RTF's spectrum against its recurrence, run for thousands of steps."""

import pytest
import torch

from kernels.rational_spectrum import rational_spectrum
from kernels.testing import relative_error, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def impulse_response(a, b, h0, steps):
    """w[t] = delta[t] - sum_i a_i w[t - i], h[t] = h0 delta[t] + sum_i b_i w[t - i]."""
    a = a.repeat_interleave(b.shape[0] // a.shape[0], dim=0)
    order = a.shape[1]
    past = [torch.zeros_like(h0)] * order  # newest first
    taps = []
    for t in range(steps):
        w = torch.stack(past, dim=-1)
        taps.append((b * w).sum(-1) + (h0 if t == 0 else 0.0))
        past = [(1.0 if t == 0 else 0.0) - (a * w).sum(-1), *past[:-1]]
    return torch.stack(taps, dim=-1)


def oracle(a, b, h0, length, semantics="aliased"):
    """The taps."""
    n = max(length, a.shape[1] + 1)
    n += n % 2
    h = impulse_response(a, b, h0, n if semantics == "exact" else -(-600 // n) * n)
    return h.unflatten(-1, (-1, n)).sum(1)[:, :length]


def taps(a, b, h0, length, **options):
    spectrum = rational_spectrum(a, b, h0, length, **options)
    return torch.fft.irfft(spectrum, n=2 * (spectrum.shape[-1] - 1))[:, :length]


def stable(denominators, channels, order):
    torch.manual_seed(0)
    a, b = torch.rand(denominators, order).double() * 2 - 1, torch.randn(channels, order).double()
    return {"a": 0.9 * a / a.abs().sum(-1, keepdim=True), "b": b, "h0": torch.randn(channels).double()}


@pytest.mark.parametrize("semantics", ["aliased", "exact"])
@pytest.mark.parametrize("denominators, channels, order, length", [(1, 1, 1, 1), (1, 3, 4, 9), (2, 4, 3, 16)])
def test_taps_are_those_of_the_recurrence(where, semantics, denominators, channels, order, length):
    given = stable(denominators, channels, order)
    wide = tuple(given)  # coefficients are fp32 whatever the data are
    verify(taps, oracle, given, length=length, semantics=semantics, wide=wide, **where)
    exact = taps(**given, length=length, semantics=semantics)
    assert relative_error(exact, oracle(**given, length=length, semantics=semantics)) < 1e-9


def test_the_two_semantics_differ():
    given = stable(1, 2, 3)
    assert relative_error(taps(**given, length=4), oracle(**given, length=4, semantics="exact")) > 1e-3


def test_is_a_well_formed_operator():
    from kernels.rational_spectrum import triton

    below, above, h0 = (torch.randn(shape, device=HERE, requires_grad=True) for shape in ((1, 5, 2), (2, 5, 2), (2,)))
    torch.library.opcheck(triton.division, (below, above, h0))


def test_bad_input():
    a, b, h0 = stable(2, 4, 3).values()
    with pytest.raises(ValueError, match="with A dividing D"):
        rational_spectrum(a, b[:3], h0[:3], 8)
    with pytest.raises(ValueError, match="did you mean 'aliased'"):
        rational_spectrum(a, b, h0, 8, semantics="alias")
    with pytest.raises(ValueError, match="length must be at least 1"):
        rational_spectrum(a, b, h0, 0)
