"""Feature maps by their definitions, and the kernels against a literal sum."""

import math

import pytest
import torch

import kernels
import layers
from kernels.linear_attention import reference
from kernels.taylor_attention import packed_features, packed_size
from layers.feature_maps import build_map, registry


def literal(weights, v, normalize):
    """y[t] = sum_{s <= t} w[t, s] v[s], divided by the sum of the weights."""
    y = torch.zeros_like(v)
    for t in range(v.shape[2]):
        w = weights[:, :, t, : t + 1]
        y[:, :, t] = (w.unsqueeze(-1) * v[:, :, : t + 1]).sum(2)
        if normalize:
            y[:, :, t] /= w.sum(-1, keepdim=True)
    return y


@pytest.mark.parametrize("length", [1, 5, 64, 129, 200])
@pytest.mark.parametrize("normalize", [True, False])
def test_kernels_equal_the_sum(length, normalize):
    torch.manual_seed(0)
    q, k = torch.rand(2, 2, 3, length, 4, dtype=torch.float64)
    v = torch.randn(2, 3, length, 5, dtype=torch.float64)
    products = torch.einsum("bhtd,bhsd->bhts", q, k)
    x = products / 2  # sqrt(d) = 2
    for got, weights in (
        (kernels.linear_attention(q, k, v, normalize=normalize), products),
        (kernels.taylor_attention(q, k, v, normalize=normalize), 1 + x + x**2 / 2),
    ):
        want = literal(weights, v, normalize)
        assert (got - want).norm() / want.norm() < 1e-10
        assert (torch.zeros_like(want) - want).norm() / want.norm() > 0.5


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_chunks_equal_all_pairs(length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, length, 4, dtype=torch.float64)
    want = reference.inner_products(q, k).tril() @ v
    got = reference.by_chunks(q, k, v, reference.inner_products, lambda x: x)
    assert torch.allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("d", [1, 8, 16])
def test_taylor_features(d):
    torch.manual_seed(0)
    q, k = torch.randn(2, 50, d, dtype=torch.float64)
    t = (q * k).sum(-1) / math.sqrt(d)
    assert torch.allclose((packed_features(q) * packed_features(k)).sum(-1), 1 + t + t**2 / 2, atol=1e-12)
    assert packed_features(q).shape[-1] == packed_size(d) and packed_size(16) == 153


@pytest.mark.parametrize("name", registry.names())
def test_every_map_has_the_size_it_says(name):
    torch.manual_seed(0)
    phi = build_map(name, 8, 2, 10)
    x = torch.randn(3, 2, 10, 8)
    y = phi(x, torch.arange(10))
    assert y.shape == (3, 2, 10, phi.size) and y.isfinite().all()
    moved = phi(x, torch.arange(10) + 3)
    assert torch.equal(y, moved) != phi.positional


def test_definitions():
    x = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    at = torch.arange(5)
    assert torch.allclose(build_map("elu", 4, 1, 5)(x, at), torch.where(x > 0, x + 1, x.exp()))
    r = torch.cat([x, -x], -1).relu()
    dpfp = build_map({"name": "dpfp", "nu": 2}, 4, 1, 5)(x, at)
    assert torch.allclose(dpfp, torch.cat([r * r.roll(1, -1), r * r.roll(2, -1)], -1))
    hedgehog = build_map("hedgehog", 4, 1, 5).double()
    assert torch.allclose(hedgehog(x, at), torch.cat([x.softmax(-1), (-x).softmax(-1)], -1))
    cos = build_map("cosformer", 4, 1, 5)(x, at)
    angle = (torch.pi * at / 10).view(5, 1).double()
    assert torch.allclose(cos[..., :4] ** 2 + cos[..., 4:] ** 2, x.relu() ** 2)
    assert torch.allclose(cos[..., :4], x.relu() * angle.cos())


def test_performer_is_an_unbiased_estimate_of_softmax_weights():
    torch.manual_seed(0)
    q, k = 0.7 * torch.randn(2, 1, 1, 20, 8)
    want = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(8))
    total = 0
    for _ in range(200):
        phi = build_map({"name": "performer", "num_features": 64}, 8, 1, 20)
        total = total + phi(q, torch.arange(20)) @ phi(k, torch.arange(20)).transpose(-1, -2)
    assert ((total / 200 - want) / want).abs().mean() < 0.05


def test_fixed_maps_are_shared_and_learned_ones_are_not():
    torch.manual_seed(0)
    spec = {"name": "linear_attention", "num_heads": 2, "feature_map": {"name": "performer", "num_features": 4096}}
    layer, at = layers.build(spec, 16, 20), torch.arange(20)
    q, k, _ = layer.heads(torch.randn(3, 20, 16), at)
    want = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(8))
    got = layer.q_map(q, at) @ layer.k_map(k, at).transpose(-1, -2)
    assert ((got - want) / want).abs().mean() < 0.05
    learned = layers.build({"name": "linear_attention", "feature_map": "t2r"}, 16, 20)
    assert not torch.equal(learned.q_map.linear.weight, learned.k_map.linear.weight)


def test_positions_stay_apart_in_bf16():
    phi = build_map("cosformer", 4, 1, 1024)
    features = phi(torch.ones(1, 1, 1024, 4, dtype=torch.bfloat16), torch.arange(1024))
    assert features[0, 0].unique(dim=0).shape[0] == 1024
    layer = layers.build({"name": "linear_attention", "feature_map": "cosformer"}, 4, 300).bfloat16()
    state = layer.init_state(1)
    with torch.no_grad():
        for _ in range(300):
            _, state = layer.step(torch.ones(1, 4, dtype=torch.bfloat16), state)
    assert state[-1].tolist() == [300]


@pytest.mark.parametrize(
    "name, params, state, flops",
    [  # of the published layers at dim 128, length 128; FLOPs a token
        ("attention", 66_048, 32_768, 196_608),
        ("mh_attention", 66_048, 32_768, 196_608),
        ("sliding_attention", 66_048, 8_448, 147_968),
        ("linear_attention", 131_584, 16_512, 327_680),
        ("mh_linear_attention", 65_824, 1_152, 143_360),
        ("based", 36_864, 153 * 129, None),
        ("hyena", 123_964 + 3 * 128, None, 276_480),
        ("mh_hyena", 30_478 + 3 * 128, None, 213_248),
        ("hyena_experts", 57_080 + 3 * 128, None, None),
        ("base_conv", 17_024, None, None),
        ({"name": "mamba", "num_states": 16}, 116_480, None, None),
        ({"name": "mamba2", "num_states": 16}, 104_620, None, None),
        ("rwkv7", 4 * 128**2 + 128 * (2 * 96 + 13), 128 * 65, 8 * 128**2 + 128 * (4 * 96 + 9 * 64)),
        ("mlp", 131_072, 0, 262_144),
        ("swiglu", 135_168, 0, 270_336),
        ("moe", None, 0, 26_624),
    ],
)
def test_published_sizes(name, params, state, flops):
    layer = layers.build(name, 128, 128)
    if params is not None:
        assert sum(p.numel() for p in layer.parameters()) == params
    if state is not None:
        assert layer.state_size(128) == state
    if flops is not None:
        assert layer.flops(128) == 128 * flops


def test_bad_options():
    with pytest.raises(ValueError, match="unknown feature map 'hedgehg' .did you mean 'hedgehog'"):
        layers.build({"name": "linear_attention", "feature_map": "hedgehg"}, 16, 8)
    with pytest.raises(ValueError, match="unknown option of feature map 'dpfp': 'mu' .did you mean 'nu'"):
        layers.build({"name": "linear_attention", "feature_map": {"name": "dpfp", "mu": 1}}, 16, 8)
    for feature_map in (None, 3, {"nu": 2}):
        with pytest.raises(ValueError, match="a feature map is a name or a mapping with the key 'name', got"):
            layers.build({"name": "linear_attention", "feature_map": feature_map}, 16, 8)
    with pytest.raises(ValueError, match="normalize must be true or false, got 'yes'"):
        layers.build({"name": "linear_attention", "normalize": "yes"}, 16, 8)
    with pytest.raises(ValueError, match="eps must be a finite number of at least 0, got -1.0"):
        layers.build({"name": "based", "eps": -1.0}, 16, 8)
    with pytest.raises(ValueError, match="expected q, k"):
        kernels.linear_attention(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 3))
