"""RWKV-7 against its formula, head by head and token by token, and the initial values of its code."""

import math

import pytest
import torch

import layers


def built(dim, **options):
    """With parameters away from their initial values, where three maps of low rank are zero."""
    torch.manual_seed(0)
    layer = layers.build({"name": "rwkv7", **options}, dim, 20).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.3 * torch.randn_like(p)
    return layer


def literal(layer, x, width):
    """One sequence (T, dim) -> (T, dim), by loops."""
    p, before, outputs = dict(layer.named_parameters()), torch.zeros_like(x[0]), []
    heads = [slice(at, at + width) for at in range(0, x.shape[1], width)]
    states = [torch.zeros(width, width, dtype=x.dtype) for _ in heads]  # keys, values
    for x_t in x:
        xr, xw, xk, xv, xa, xg = (mu * before + (1 - mu) * x_t for mu in p["mix"])
        r, k, v = p["r.weight"] @ xr, p["k.weight"] @ xk, p["v.weight"] @ xv
        log_w = p["decay_bias"] + p["decay.2.weight"] @ (p["decay.0.weight"] @ xw).tanh()
        w = (-math.exp(-0.5) / (1 + (-log_w).exp())).exp()
        alpha = 1 / (1 + (-p["rate_bias"] - p["rate.2.weight"] @ (p["rate.0.weight"] @ xa)).exp())
        g = p["gate.2.weight"] @ (1 / (1 + (-p["gate.0.weight"] @ xg).exp()))
        y = torch.zeros_like(x_t)
        for n, at in enumerate(heads):
            kappa = p["find"][at] * k[at]
            kappa = kappa / kappa.square().sum().sqrt()
            written = k[at] * (1 - p["write"][at] + alpha[at] * p["write"][at])
            transition = torch.diag(w[at]) - torch.outer(kappa * alpha[at], kappa)
            states[n] = transition @ states[n] + torch.outer(written, v[at])
            found = r[at] @ states[n]
            centred = found - found.mean()
            found = centred / (centred.square().mean() + 1e-5 * width).sqrt()
            y[at] = found * p["norm_weight"][at] + p["norm_bias"][at]
            y[at] += (r[at] * p["bonus"][at] * written).sum() * v[at]
        outputs.append(p["out.weight"] @ (y * g))
        before = x_t
    return torch.stack(outputs)


@pytest.mark.parametrize("dim, width, options", [(12, 4, {"head_dim": 4, "a_rank": 3}), (6, 6, {})])
def test_equals_the_formula(dim, width, options):
    layer = built(dim, **options)
    x = torch.randn(2, 20, dim, dtype=torch.float64)
    with torch.no_grad():
        want = torch.stack([literal(layer, sequence, width) for sequence in x])
        torch.testing.assert_close(layer(x), want, rtol=1e-9, atol=1e-9)


def test_initial_values_are_those_of_the_first_layer():
    layer = layers.build("rwkv7", 128, 20)
    mix = 1 - layer.mix.detach()  # the share of the token itself, (channel / dim) ** power
    assert mix[:, 0].tolist() == [0.0] * 6
    assert mix[:, 64].tolist() == pytest.approx([0.5**power for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)])
    ends = [0, 63, 64, 127]  # of the two heads: a slow and a fast channel each
    assert layer.decay_bias[ends].tolist() == pytest.approx([-8, -5.5 + 6 * 63 / 127 + 2.5, -8 + 6 * 64 / 127, 3])
    assert layer.rate_bias[ends[::3]].tolist() == pytest.approx([-0.69, 0.31])
    assert layer.find[ends[::3]].tolist() == pytest.approx([0.76, 0.66])
    assert layer.write.unique().tolist() == pytest.approx([1.02])
    assert layer.bonus.unique().tolist() == pytest.approx([-0.04])
    for down, _, up in (layer.decay, layer.rate, layer.gate):
        assert not down.weight.any()
        torch.testing.assert_close(up.weight.mT @ up.weight, 0.01 * torch.eye(up.in_features), atol=1e-6, rtol=0)
    for linear, bound in ((layer.r, 0.5), (layer.k, 0.05), (layer.v, 0.5), (layer.out, 0.5)):
        assert linear.weight.abs().max().item() == pytest.approx(bound * 128**-0.5, rel=0.01)


def test_bad_options():
    with pytest.raises(ValueError, match="head_dim=48 does not divide dim=128; the nearest that does is 32"):
        layers.build({"name": "rwkv7", "head_dim": 48}, 128, 8)
    with pytest.raises(ValueError, match="head_dim must be a whole number of at least 1, got 0"):
        layers.build({"name": "rwkv7", "head_dim": 0}, 128, 8)
    with pytest.raises(ValueError, match="gate_rank must be a whole number of at least 1, got 1.5"):
        layers.build({"name": "rwkv7", "gate_rank": 1.5}, 128, 8)
