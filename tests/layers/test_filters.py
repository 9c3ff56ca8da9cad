"""Filters in bf16: their weights are rounded, the taps are those of the rounded weights."""

import copy

import pytest
import torch

import layers
from layers.filters import build_filter


@pytest.mark.parametrize("spec", ["implicit", {"name": "implicit", "sine_frequency": 10.0}, "rtf"])
def test_bf16_does_not_count_tokens_or_turn_angles(spec):
    torch.manual_seed(0)
    short = build_filter(spec, 8, 1000).bfloat16()
    found, want = short(1000).double(), copy.deepcopy(short).double()(1000)
    torch.testing.assert_close(found, want, rtol=1e-2, atol=1e-4 * want.abs().max().item())


def test_autocast_does_not_round_a_wide_filters_angles():
    torch.manual_seed(0)
    layer = layers.build("monarch_mixer", 16, 64)
    made = next(module for module in layer.modules() if type(module).__name__ == "ImplicitFilter")
    want = made(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = made(64)
    assert (got - want).norm() < 1e-5 * want.norm()


def test_more_taps_than_it_was_built_for():
    made = build_filter("implicit", 4, 33)
    assert made(33).shape == (4, 33) and made(0).shape == (4, 0)
    with pytest.raises(ValueError, match="built for max_length=33, got 40 tokens"):
        made(40)
