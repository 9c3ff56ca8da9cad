"""RTF: the FFT's taps against the recurrence itself, stepped in fp64."""

import pytest
import torch

import layers
from layers.rtf import RationalFilter


def impulse_response(a, b, h0, length):
    """h of H(z) = h0 + (sum b_n z^-n) / (1 + sum a_n z^-n), by its difference equation, channel by channel."""
    taps = torch.zeros(len(b), length, dtype=torch.float64)
    for c in range(len(b)):
        s = []
        for t in range(length):
            s.append(float(t == 0) - sum(a[c, n] * s[t - 1 - n] for n in range(min(t, a.shape[1]))))
            taps[c, t] = sum(b[c, n] * s[t - 1 - n] for n in range(min(t, a.shape[1])))
        taps[c, 0] += h0[c]
    return taps


@pytest.mark.parametrize("length", [2, 7, 8, 33, 64])
@pytest.mark.parametrize("init, constraint", [("montel", "none"), ("xavier", "none"), ("xavier", "l1_montel")])
@pytest.mark.parametrize("num_a", [1, 2])
def test_taps_are_those_of_the_recurrence(length, init, constraint, num_a):
    torch.manual_seed(0)
    f = RationalFilter(4, length, d_state=6, num_a=num_a, init=init, constraint=constraint).double()
    want = impulse_response(*f.recurrence(), length)
    got = f(length).detach()
    assert (got - want).norm() / want.norm() < 1e-10
    assert got[:, 1:].norm() > 1e-3  # not all in h0


def test_folding_matters():
    """Without the correction the recurrence has other taps: the test above is not blind to it."""
    torch.manual_seed(0)
    f = RationalFilter(4, 16, d_state=6, init="xavier").double()
    uncorrected = impulse_response(f.a.detach().expand(4, -1), f.b.detach(), f.h0.detach(), 16)
    assert (f(16).detach() - uncorrected).norm() / uncorrected.norm() > 1e-4


def test_the_constraint_keeps_poles_inside():
    torch.manual_seed(0)
    f = RationalFilter(3, 32, d_state=8, num_a=3, init="xavier", constraint="l1_montel").double()
    with torch.no_grad():
        f.a.mul_(50)
    for a in f.denominator().detach():
        companion = torch.diag(torch.ones(7, dtype=torch.float64), -1)
        companion[0] = -a
        assert torch.linalg.eigvals(companion).abs().max() < 1


def test_filters_are_trained():
    """In Hyena too, where the published code forgets to register them."""
    for layer in (layers.build("rtf", 16, 24), layers.build({"name": "hyena", "filter": "rtf"}, 16, 24)):
        assert {"filter.a", "filter.b", "filter.h0"} <= {name for name, _ in layer.named_parameters()}
        layer(torch.randn(2, 24, 16)).square().sum().backward()
        assert layer.filter.b.grad.abs().sum() > 0


def test_bad_options():
    with pytest.raises(ValueError, match="unknown init of rtf: 'montell' .did you mean 'montel'"):
        layers.build({"name": "rtf", "init": "montell"}, 16, 24)
    with pytest.raises(ValueError, match="unknown constraint of rtf: 'l1'"):
        layers.build({"name": "rtf", "constraint": "l1"}, 16, 24)
    with pytest.raises(ValueError, match="num_a=3 does not divide channels=16; the nearest that does is 2"):
        layers.build({"name": "rtf", "num_a": 3}, 16, 24)
    with pytest.raises(ValueError, match="unknown filter 'implicitt' .did you mean 'implicit'"):
        layers.build({"name": "hyena", "filter": "implicitt"}, 16, 24)
