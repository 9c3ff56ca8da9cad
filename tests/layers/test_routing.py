"""Sparse experts against the plain sum over the chosen ones."""

import pytest
import torch
import torch.nn.functional as F

import kernels
import layers
from layers.routing import Dispatch


def plain_moe(layer, x):
    """Every token through each of its top k experts, one after the other."""
    y = torch.zeros_like(x)
    scores = layer.router.scores(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            top = scores[b, t].topk(layer.router.top_k)
            for p, e in zip(top.values.softmax(-1), top.indices, strict=True):
                gate, value = (x[b, t] @ layer.up[e]).chunk(2)
                y[b, t] += p * ((F.silu(gate) * value) @ layer.down[e])
    return y


@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 33)])
def test_moe_equals_the_plain_sum(top_k, shape):
    torch.manual_seed(0)
    layer = layers.build({"name": "moe", "top_k": top_k}, 16, 64).double()
    x = torch.randn(*shape, 16, dtype=torch.float64)
    assert torch.allclose(layer(x), plain_moe(layer, x), atol=1e-12)


def test_dense_mixtures_weigh_every_expert():
    """Against a loop over tokens and experts."""
    torch.manual_seed(0)
    layer = layers.build("dense_moe", 32, 8).double()
    assert sum(p.numel() for p in layers.build("dense_moe", 128, 8).parameters()) == 164_872  # the published, as used
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    y, down = layer(x)[0], layer.down.weight.view(32, 8, 128)
    for t in range(5):
        scores = layer.router.scores(x[0, t])
        chosen = scores.topk(2).indices.tolist()
        p = torch.stack([scores[e] if e in chosen else scores[e] * 0 for e in range(8)]).softmax(-1)
        value, gate = (layer.up.weight @ x[0, t]).chunk(2)
        hidden = value * F.gelu(gate, approximate="tanh")
        assert torch.allclose(y[t], sum(p[e] * (down[:, e] @ hidden) for e in range(8)), atol=1e-12)
        assert p.min() > 0


def test_dense_hyena_experts_are_hyena_with_a_weighted_sum():
    torch.manual_seed(0)
    layer = layers.build("dense_hyena_experts", 32, 8).double()
    x = torch.randn(2, 8, 32, dtype=torch.float64)
    z = (
        torch.stack([x @ layer.weight[e] + layer.bias[e] for e in range(8)], -1).flatten(2).transpose(1, 2)
    )  # (B, 96, T)
    x0, x1, v = kernels.short_conv(z, layer.conv.taps, layer.conv.bias).chunk(3, dim=1)
    y = kernels.fft_conv(v, layer.filter(8), skip=layer.skip, pre_gate=x1, post_gate=x0).transpose(1, 2)
    p = layer.router.of_all(x.flatten(0, 1)).view(2, 8, 1, 8)
    assert torch.allclose(layer(x), layer.out((y.unflatten(-1, (4, 8)) * p).sum(-1)), atol=1e-12)


@pytest.mark.parametrize("tokens", [2, 40, 1500])
def test_slots_hold_each_token_once_however_unequal_the_experts(tokens):
    torch.manual_seed(0)
    for experts in (
        torch.zeros(tokens, 1, dtype=torch.int64),
        torch.stack([torch.randperm(4)[:2] for _ in range(tokens)]),
    ):
        dispatch = Dispatch(experts, 4)
        x = torch.randn(tokens, 3)
        back = dispatch.scatter(dispatch.gather(x))
        assert torch.equal(back, x.unsqueeze(1).expand_as(back))
        weights = torch.randn(4, 3, 2)
        product = dispatch.scatter(dispatch.multiply(dispatch.gather(x), weights))
        assert torch.allclose(product, torch.einsum("nd,nkdo->nko", x, weights[experts]), atol=1e-5)


@pytest.mark.parametrize("name", ["moe", "hyena_experts"])
def test_experts_that_are_not_chosen_get_no_gradient(name):
    """One token chooses 2 of 8 experts; the others' weights must not move."""
    torch.manual_seed(0)
    layer = layers.build(name, 32, 8)
    x = torch.randn(1, 1, 32)
    layer(x).square().sum().backward()
    weight = layer.up if name == "moe" else layer.weight
    moved = weight.grad.flatten(1).abs().sum(1) > 0
    chosen = torch.zeros(8, dtype=torch.bool)
    chosen[layer.router(x.flatten(0, 1))[1].flatten()] = True
    assert torch.equal(moved, chosen) and chosen.sum() == 2


def test_bad_options():
    with pytest.raises(ValueError, match="top_k=9 is more than num_experts=8; the most is 8"):
        layers.build({"name": "moe", "top_k": 9}, 32, 8)
    with pytest.raises(ValueError, match="num_experts=5 does not divide dim=32; the nearest that does is 4"):
        layers.build({"name": "hyena_experts", "num_experts": 5}, 32, 8)
