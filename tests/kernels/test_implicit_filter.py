"""Implicit filters against their formula, a tap at a time, in float64."""

import math

import pytest
import torch

from kernels.implicit_filter import implicit_filter
from kernels.testing import verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def call(position, frequency, out, decay, backend="auto", **layers):
    hidden = [(layers[f"w{i}"], layers[f"b{i}"]) for i in range(len(layers) // 2)]
    return implicit_filter(position, frequency, hidden, out, decay, backend=backend)


def taps(position, frequency, out, decay, **layers):
    columns = []
    for t, z in enumerate(position):
        for i in range(len(layers) // 2):
            weight, bias = layers[f"w{i}"], layers[f"b{i}"]
            angles = [frequency[o] * (weight[o].dot(z) + bias[o]) for o in range(len(frequency))]
            z = torch.stack([torch.sin(angle) for angle in angles])
        columns.append(torch.stack([row.dot(z) * torch.exp(-d * t) for row, d in zip(out, decay, strict=True)]))
    return torch.stack(columns, dim=1)


def example(channels, length, inputs, width, layers=3):
    torch.manual_seed(0)
    given = {"position": torch.randn(length, inputs), "frequency": torch.rand(width) + 0.5}
    for i in range(layers):
        given |= {f"w{i}": torch.randn(width, inputs if i == 0 else width), f"b{i}": torch.randn(width)}
    given |= {"out": torch.randn(channels, width), "decay": torch.rand(channels) / length}
    return {name: t.double() for name, t in given.items()}


@pytest.mark.parametrize(
    "channels, length, inputs, width", [(1, 1, 3, 1), (8, 40, 3, 2), (70, 33, 3, 4), (5, 64, 7, 4), (130, 9, 1, 3)]
)
def test_equals_the_formula(where, channels, length, inputs, width):
    verify(call, taps, example(channels, length, inputs, width), **where)


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_angles_of_many_turns(where, size):
    """In fp32: an angle of a thousand has lost three digits before its sine is taken."""
    if where["dtype"] != torch.float32:
        pytest.skip("weights are fp32")
    given = example(4, 50, 3, 2)
    given["frequency"] = torch.tensor([size, -0.7 * size]).double()
    for name in ("w1", "w2"):
        given[name] = 0.01 * given[name]  # or errors would grow from layer to layer
    given["b1"], given["b2"] = 0.01 * given["b1"], 0.01 * given["b2"]
    verify(call, taps, given, scale=max(1, size), **where)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of an infinite angle
def test_sines_to_the_last_digits():
    """Of whole numbers, which fp32 holds exactly, up to 1e4; beyond what it resolves they are still numbers."""
    one, zero = torch.ones(1, 1, device=HERE), torch.zeros(1, device=HERE)
    layers = {f"w{i}": one for i in range(3)} | {f"b{i}": zero for i in range(3)}

    def of(angles):
        position = torch.tensor(angles, device=HERE).unsqueeze(-1)
        return call(position, one[0], one, zero, backend="triton", **layers)[0]

    angles = torch.arange(-10_000.0, 10_001.0, 77.0)
    assert (of(angles.tolist()).cpu().double() - angles.double().sin().sin().sin()).abs().max() < 3e-7
    assert of([1e8, -3e9, 1e15]).abs().max() < 1 and of([math.inf]).isnan().all()


def test_weights_that_lie_apart(where):
    given = example(6, 20, 3, 4)
    for name in ("position", "w1", "out"):
        given[name] = given[name].t().contiguous().t()
    verify(call, taps, given, **where)


def test_a_tap_off_by_one_is_seen(where):
    def wrong(position, **given):
        return taps(position.roll(1, 0), **given)

    with pytest.raises(AssertionError, match="out 0: relative error"):
        verify(call, wrong, example(8, 40, 3, 2), **where)


@pytest.mark.parametrize("shape", [(4, 7, 3, 5), (4, 7, 9, 4), (4, 7, 3, 4, 2), (0, 7, 3, 4), (4, 0, 3, 4)])
def test_what_the_kernels_do_not_take_goes_by_the_reference(shape):
    """Wide ones, another number of layers, none of channels or of tokens."""
    given = {name: t.to(HERE).requires_grad_() for name, t in example(*shape).items()}
    want = call(**given, backend="torch")
    h = call(**{name: t.float() for name, t in given.items()}, backend="triton")
    assert h.shape == want.shape == (shape[0], shape[1])
    torch.testing.assert_close(h.double(), want, atol=1e-5, rtol=1e-5)


def test_angles_are_not_rounded_where_weights_are():
    given = example(4, 300, 3, 4)
    rounded = {name: t.bfloat16() for name, t in given.items()}
    h = call(**rounded)
    assert h.dtype == torch.float32
    want = call(**{name: t.double() for name, t in rounded.items()})
    torch.testing.assert_close(h.double(), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name, size", [("w1", (4, 3)), ("b0", (3,)), ("decay", (7,)), ("out", (6, 5)), ("frequency", ())]
)
def test_bad_input(name, size):
    given = {**example(6, 20, 3, 4), name: torch.zeros(size)}
    with pytest.raises(ValueError, match=r"expected position \(L, E\).*got \(20, 3\)"):
        call(**given)


def test_grows_old():
    """A channel's taps fall by its decay a token, whatever the network says."""
    given = example(3, 50, 3, 2)
    given["position"] = torch.ones(50, 3).double()
    h = call(**given)
    assert torch.allclose(h[:, 1:] / h[:, :-1], torch.exp(-given["decay"])[:, None].expand(-1, 49))
    assert math.isclose(h[0, 0].item(), taps(**given)[0, 0].item(), rel_tol=1e-12)
