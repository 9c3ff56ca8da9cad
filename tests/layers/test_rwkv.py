"""RWKV-4, 5 and 6 against their formulas, token by token, and their sizes against the MAD protocol's."""

import math

import pytest
import torch
import torch.nn.functional as F

import layers


def built(spec, dim):
    """With parameters away from their initial values, where shares and decays hardly depend on the token."""
    torch.manual_seed(0)
    layer = layers.build(spec, dim, 20).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.3 * torch.randn_like(p)
    return layer


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def rwkv4(layer, x):
    """One sequence (T, dim): a softmax over the tokens, by the scores' differences alone."""
    p, before, scores, values, outputs = dict(layer.named_parameters()), torch.zeros_like(x[0]), [], [], []
    rate = p["decay"].exp()
    for t, x_t in enumerate(x):
        xr, xk, xv = (mu * before + (1 - mu) * x_t for mu in p["mix"])
        k, v = p["k.weight"] @ xk, p["v.weight"] @ xv
        distances = [score - (t - 1 - s) * rate for s, score in enumerate(scores)]
        shares = torch.stack([*distances, k + p["bonus"]]).softmax(0)
        read = (shares * torch.stack([*values, v])).sum(0)
        outputs.append(p["out.weight"] @ (sigmoid(p["r.weight"] @ xr) * read))
        scores.append(k), values.append(v)
        before = x_t
    return torch.stack(outputs)


def matrix(layer, x, width):
    """RWKV-5 and 6, one sequence (T, dim), head by head."""
    p, before, outputs = dict(layer.named_parameters()), torch.zeros_like(x[0]), []
    heads = [slice(at, at + width) for at in range(0, x.shape[1], width)]
    states = [torch.zeros(width, width, dtype=x.dtype) for _ in heads]  # keys, values
    for x_t in x:
        mix, w_0 = list(p["mix"]), p["decay"]
        if "mix_all" in p:
            m = x_t + p["mix_all"][0] * (before - x_t)
            rank = p["mix_up"].shape[1]
            low = (m @ p["mix_down"]).tanh()
            mix = [mu + low[n * rank : (n + 1) * rank] @ p["mix_up"][n] for n, mu in enumerate(mix)]
            xw = x_t + mix.pop() * (before - x_t)
            w_0 = w_0 + (xw @ p["decay_down"]).tanh() @ p["decay_up"]
        xr, xk, xv, xg = (mu * before + (1 - mu) * x_t for mu in mix)
        r, k, v, g = (p[f"{n}.weight"] @ x_n for n, x_n in (("r", xr), ("k", xk), ("v", xv), ("g", xg)))
        w = (-w_0.exp()).exp()
        y = torch.zeros_like(x_t)
        for n, at in enumerate(heads):
            found = r[at] @ (states[n] + torch.outer(p["bonus"][at] * k[at], v[at]))
            states[n] = w[at, None] * states[n] + torch.outer(k[at], v[at])
            found = found / 8  # as the published code, whose norm then has eps 1e-5
            centred = found - found.mean()
            y[at] = centred / (centred.square().mean() + 1e-5).sqrt() * p["norm_weight"][at] + p["norm_bias"][at]
        outputs.append(p["out.weight"] @ (y * g * sigmoid(g)))
        before = x_t
    return torch.stack(outputs)


def channel(layer, x):
    p, before = dict(layer.named_parameters()), F.pad(x[:-1], (0, 0, 1, 0))
    xr, xk = (mu * before + (1 - mu) * x for mu in p["mix"])
    return sigmoid(xr @ p["r.weight"].mT) * ((xk @ p["k.weight"].mT).clamp(min=0) ** 2 @ p["down.weight"].mT)


@pytest.mark.parametrize(
    "spec, literal",
    [
        ({"name": "rwkv4"}, rwkv4),
        ({"name": "rwkv5", "head_dim": 4}, lambda layer, x: matrix(layer, x, 4)),
        ({"name": "rwkv6", "head_dim": 6, "mix_rank": 3, "decay_rank": 5}, lambda layer, x: matrix(layer, x, 6)),
        ({"name": "rwkv_channel", "width": 7}, channel),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_equals_the_formula(spec, literal):
    layer = built(spec, 12)
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    with torch.no_grad():
        want = torch.stack([literal(layer, sequence) for sequence in x])
        torch.testing.assert_close(layer(x), want, rtol=1e-9, atol=1e-9)


def test_keys_that_would_overflow():
    layer = built("rwkv4", 8).float()
    x = torch.randn(1, 20, 8, requires_grad=True)
    with torch.no_grad():
        layer.k.weight *= 500  # exponents far beyond what fp32 holds
        layer.bonus[:2] = torch.tensor([-90.0, 90.0])
    y = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all() and all(leaf.grad.isfinite().all() for leaf in (x, *layer.parameters()))


@pytest.mark.parametrize(
    "name, params, state, flops",
    [
        ("rwkv4", 4 * 128**2 + 5 * 128, 3 * 128, 8 * 128**2 + 10 * 128),
        ("rwkv5", 82_944, 2_048 + 128, 163_840 + 10_240),
        ("rwkv6", 140_544, 2_048 + 128, 163_840 + 10_240 + 81_920 + 32_768),
        ("rwkv_channel", 147_712, 128, 294_912),
    ],
)
def test_sizes_at_the_protocol_s_width(name, params, state, flops):
    layer = layers.build(name, 128, 128)
    assert sum(p.numel() for p in layer.parameters()) == params
    assert layer.state_size(128) == state and layer.flops(1) == flops


def test_initial_values_are_those_of_the_first_layer():
    four, five, six = (layers.build(name, 128, 20) for name in ("rwkv4", "rwkv5", "rwkv6"))
    for layer in (four, five, six):  # the share of the token itself, (channel / dim) ** power
        assert (1 - layer.mix[:3, 32]).tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert (1 - six.mix_all[0, 32]).item() == pytest.approx(0.25)
    assert four.decay[[0, 64, 127]].tolist() == pytest.approx([-5, -5 + 8 * (64 / 127) ** 0.7, 3], abs=1e-5)
    assert five.decay[[0, 64, 127]].tolist() == pytest.approx([-6, -6 + 5 * (64 / 127) ** 0.7, -1], abs=1e-5)
    assert four.bonus[:4].tolist() == pytest.approx([math.log(0.3) + z for z in (0, 0.5, -0.5, 0)])
    assert six.bonus[:4].tolist() == pytest.approx([0, 0.1, -0.1, 0])
    assert 0 < six.mix_up.abs().max() <= 1e-4 and 0 < six.decay_down.abs().max() <= 1e-4


def test_bad_options():
    with pytest.raises(ValueError, match="head_dim=48 does not divide dim=128; the nearest that does is 32"):
        layers.build({"name": "rwkv5", "head_dim": 48}, 128, 8)
    with pytest.raises(ValueError, match="mix_rank must be a whole number of at least 1, got 0"):
        layers.build({"name": "rwkv6", "mix_rank": 0}, 128, 8)
    with pytest.raises(ValueError, match="width must be a whole number of at least 1, got 1.5"):
        layers.build({"name": "rwkv_channel", "width": 1.5}, 128, 8)
