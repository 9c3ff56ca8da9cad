"""RTF's spectrum against its recurrence, run for thousands of steps."""

import math

import pytest
import torch
import torch.nn.functional as F

from kernels.rational_spectrum import rational_spectrum
from kernels.testing import relative_error, run, verify

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


def test_several_blocks_of_frequencies(where, monkeypatch):
    """36 of them, the last block with four."""
    from kernels.rational_spectrum import triton

    monkeypatch.setattr(triton, "BLOCK", 16)
    given = stable(2, 4, 3)
    verify(taps, oracle, given, length=70, wide=tuple(given), **where)


def near_the_circle(radius, place, length=64):
    """Two pairs of poles that far out, at so many roots of unity: at whole ones the spectrum is highest."""
    a = torch.ones(1).double()
    for angle in (place, place + 4):
        cosine = math.cos(2 * math.pi * angle / length)
        a = sum(F.pad(a, (i, 2 - i)) * c for i, c in enumerate((1.0, -2 * radius * cosine, radius**2)))
    return stable(1, 3, 4) | {"a": a[None, 1:].float().double()}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("radius, place", [(0.99, 3.0), (0.999, 3.0), (0.999, 3.5), (0.9999, 3.5), (1.0, 3.5)])
def test_near_the_unit_circle_is_as_exact_as_fp32_has_the_denominator(backend, radius, place):
    """An error of the denominator's rounding, over the least of its values; and the impulse response where it lasts."""
    exact = near_the_circle(radius, place)
    below = torch.fft.rfft(torch.cat([torch.ones(1, 1), exact["a"]], dim=-1), n=64)
    condition = (1 + exact["a"].abs().sum()) / below.abs().min()
    allowed = 2**-24 * condition.item()

    def spectrum(a, b, h0, backend="torch"):
        return torch.view_as_real(rational_spectrum(a, b, h0, 64, backend=backend))

    given = {name: t.float().to(HERE) for name, t in exact.items()}
    got, want = run(spectrum, given, {"backend": backend}, True), run(spectrum, exact, {}, True)
    for name, value in got.items():
        factor = {"out 0": 1, "d b": 2, "d h0": 1, "d a": 16}[name]  # sums over both sides of each pole, which cancel
        assert relative_error(value, want[name]) < factor * allowed, name
    worse = given | {"a": given["a"] * (1 + 2**-16)}
    assert relative_error(spectrum(**worse, backend=backend), want["out 0"]) > allowed
    cut = oracle(**exact, length=64, semantics="exact")
    assert relative_error(taps(**exact, length=64, semantics="exact"), cut) < 1e-9
    assert relative_error(taps(**given, length=64, semantics="exact", backend=backend), cut) < 4 * allowed


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
    for empty in (a[:0], a[:, :0]):
        with pytest.raises(ValueError, match="with A dividing D, A and N at least 1, got"):
            rational_spectrum(empty, b[:, : empty.shape[1]], h0, 8, semantics="exact")
    for length in (0, 2.5):
        with pytest.raises(ValueError, match=f"length must be a whole number of at least 1, got {length}"):
            rational_spectrum(a, b, h0, length)
