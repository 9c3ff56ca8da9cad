"""Attention beyond the contract that all layers share."""

import torch

import layers


def test_a_window_slides_on_beyond_the_length_that_the_layer_was_built_for():
    """Token by token it equals a layer built for all of them: positions are counted within the window."""
    torch.manual_seed(0)
    short, long = (layers.build({"name": "sliding_attention", "window": 5}, 8, length).double() for length in (8, 40))
    long.load_state_dict(short.state_dict())
    x, state = torch.randn(2, 40, 8).double(), short.init_state(2)
    y = long(x)
    for t in range(40):
        y_t, state = short.step(x[:, t], state)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-5, atol=1e-6)  # the table of rotations is fp32
    assert {leaf.shape for leaf in state} == {(2, 1, 5, 8)}


def test_rotary_tables_outlive_a_cast():
    layer = layers.build("attention", 32, 64)
    want = layer.rotary.cos.clone()
    assert layer.bfloat16().rotary.cos.dtype == torch.float32
    assert torch.equal(layer.double().rotary.cos, want) and layer.to("meta").rotary.cos.is_meta
