"""State space models against what they are said to be: Mamba-2 a scan, H3's filter a recurrence of complex numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

import kernels
import layers
from layers.h3 import DiagonalFilter


def test_mamba2_is_a_selective_scan_with_one_decay_a_head():
    torch.manual_seed(0)
    layer = layers.build({"name": "mamba2", "num_states": 6, "head_dim": 4}, 16, 40).double()
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    with torch.no_grad():
        streams = F.conv1d(layer.streams(x).transpose(1, 2), layer.taps.unsqueeze(1), layer.bias, padding=3, groups=44)
        u, b, c = F.silu(streams[..., :40]).split([32, 6, 6], dim=1)  # (B, C or N, T)
        dt = F.softplus(layer.dt(x) + layer.dt_bias).transpose(1, 2).repeat_interleave(4, dim=1)  # (B, C, T)
        a = -layer.log_a.exp().repeat_interleave(4).unsqueeze(-1).expand(-1, 6)
        y = kernels.selective_scan(u, dt, a, b, c, layer.skip.repeat_interleave(4))
        gated = y.transpose(1, 2) * F.silu(layer.gate(x))
        want = layer.out(F.rms_norm(gated, (32,), layer.norm.weight, 1e-5))
        torch.testing.assert_close(layer(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels, num_states", [(3, 2), (2, 8)])
def test_taps_are_those_of_the_bilinear_recurrence(channels, num_states):
    torch.manual_seed(0)
    f = DiagonalFilter(channels, num_states).double()
    with torch.no_grad():
        for p in f.parameters():  # away from the initial values, where all channels have equal poles
            p += 0.3 * torch.randn_like(p)
        dt = f.log_dt.exp().unsqueeze(-1)
        a = torch.complex(-f.log_rate.exp(), f.frequency)
        discrete, b = (1 + dt * a / 2) / (1 - dt * a / 2), dt / (1 - dt * a / 2)
        state, want = b, []
        for _ in range(50):  # an impulse
            want.append(2 * (torch.complex(*f.read) * state).sum(-1).real)
            state = discrete * state
        torch.testing.assert_close(f(50), torch.stack(want, -1), rtol=1e-9, atol=1e-9)


def test_poles_begin_as_s4d_lins():
    f = DiagonalFilter(4, 64)
    assert f.frequency[2].tolist() == pytest.approx([math.pi * n for n in range(32)])
    assert f.log_rate.exp().unique().tolist() == pytest.approx([0.5])
    assert ((f.log_dt >= math.log(1e-3)) & (f.log_dt <= math.log(1e-1))).all()


def test_h3_is_a_gated_pair_of_convolutions():
    torch.manual_seed(0)
    layer = layers.build({"name": "h3", "num_states": 4}, 6, 20).double()
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = layer.qkv(x).transpose(1, 2).chunk(3, dim=1)
        k = F.conv1d(F.pad(k, (3, 0)), layer.shift.unsqueeze(1), groups=6) + layer.direct.unsqueeze(-1) * k
        taps = layer.filter(20).flip(-1).unsqueeze(1)
        y = F.conv1d(F.pad(k * v, (19, 0)), taps, groups=6) + layer.skip.unsqueeze(-1) * k * v
        torch.testing.assert_close(layer(x), layer.out((q * y).transpose(1, 2)), rtol=1e-9, atol=1e-9)


def test_heads_of_h3_are_a_linear_attention():
    """A diagonal model that keeps everything, no shift: causal attention by q.k without a softmax, in heads of 2."""
    torch.manual_seed(0)
    layer = layers.build({"name": "h3", "num_states": 2, "head_dim": 2}, 8, 20).double()
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    with torch.no_grad():
        layer.shift.zero_(), layer.direct.fill_(1.0), layer.skip.zero_()
        layer.filter.forward = lambda length: torch.ones(4, length, dtype=torch.float64)
        q, k, v = (t.unflatten(-1, (4, 2)).transpose(1, 2) for t in layer.qkv(x).chunk(3, dim=-1))
        y = kernels.linear_attention(q, k, v, normalize=False)
        torch.testing.assert_close(layer(x), layer.out(y.transpose(1, 2).flatten(2)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "spec, match",
    [
        (
            {"name": "mamba2", "head_dim": 24},
            "head_dim=24 does not divide expansion dim=32; the nearest",
        ),
        ({"name": "h3", "head_dim": 3}, "head_dim=3 does not divide dim=16; the nearest that does is 2"),
        ({"name": "h3", "num_states": 5}, "num_states must be even, conjugate pairs, got 5"),
        ({"name": "h3", "num_states": 0}, "num_states must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_options(spec, match):
    with pytest.raises(ValueError, match=match):
        layers.build(spec, 16, 8)
