"""Sum and norm against their formulas, a row at a time, in float64."""

import pytest
import torch
from torch import nn

from kernels.add_norm import add_norm
from kernels.testing import verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def rows(x, weight, y=None, bias=None, center=False, eps=1e-5):
    total = x if y is None else x + y
    normed = []
    for row in total.flatten(0, -2):
        row = row - row.sum() / len(row) if center else row
        normed.append(row / (row.dot(row) / len(row) + eps) ** 0.5 * weight + (0 if bias is None else bias))
    return total, torch.stack(normed).view(x.shape)


def call(x, weight, y=None, bias=None, **options):
    return add_norm(x, y, weight, bias, **options)


def example(shape, added=True, biased=False):
    torch.manual_seed(0)
    given = {"x": torch.randn(shape).double(), "weight": torch.randn(shape[-1]).double()}
    given |= {"y": torch.randn(shape).double()} if added else {}
    return given | ({"bias": torch.randn(shape[-1]).double()} if biased else {})


SIZES = [(1, 1), (3, 16), (2, 63, 24), (5, 7, 100), (2, 2, 3, 128), (3, 700)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("added", [True, False], ids=["sum", "no sum"])
@pytest.mark.parametrize("center, biased", [(False, False), (True, True), (True, False), (False, True)])
def test_equals_the_formula(where, shape, added, center, biased):
    """An offset of a thousandth of the mean square: a row of one feature less its mean is 0."""
    given = example(shape, added, biased)
    verify(call, rows, given, wide=("x", "weight", "bias"), center=center, eps=1e-3, **where)


def test_a_branch_of_another_layout_and_type(where):
    """As a convolutional layer gives it, channels first; and both of one type, where one gradient is that of both."""

    def turned(function):
        return lambda y, **given: function(y=y.transpose(0, 1).contiguous().transpose(0, 1), **given)

    verify(turned(call), turned(rows), example((4, 6, 32)), wide=("x", "weight"), **where)
    verify(call, rows, example((4, 6, 32)), scale=2, **where)  # the sum is rounded before its norm


def test_many_rows_are_added_in_shares(where, monkeypatch):
    """Three programs, with five or six blocks of rows each, the last with a rest."""
    from kernels.add_norm import triton

    monkeypatch.setattr(triton, "PROGRAMS", 3)
    monkeypatch.setattr(triton, "TILE", 64)
    verify(call, rows, example((65, 16), biased=True), wide=("x", "weight", "bias"), center=True, **where)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_may_be_left_alone(where, used):
    given = {name: t.float().to(where["device"]).requires_grad_() for name, t in example((3, 5, 32)).items()}
    gradients = [
        torch.autograd.grad(call(**given, backend=backend)[used].sum(), list(given.values()), allow_unused=True)
        for backend in ("triton", "torch")
    ]
    for got, want in zip(*gradients, strict=True):
        assert want is None or torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.RMSNorm(24, eps=1e-5), nn.LayerNorm(24, eps=1e-5)], ids=["rms", "layer"])
def test_the_reference_is_torchs_norm_bit_for_bit(norm):
    x, y = torch.randn(2, 3, 7, 24)
    center = isinstance(norm, nn.LayerNorm)
    total, normed = add_norm(x, y, norm.weight, getattr(norm, "bias", None), center=center, backend="torch")
    assert torch.equal(total, x + y) and torch.equal(normed, norm(x + y))
    assert add_norm(x, None, norm.weight)[0] is x


def test_the_norm_is_rounded_once(where):
    given = {name: t.float().to(where["device"]) for name, t in example((3, 5, 32)).items()}
    for backend in ("triton", "torch"):
        total, normed = call(**given, dtype=where["dtype"], backend=backend)
        assert (total.dtype, normed.dtype) == (torch.float32, where["dtype"])
        assert torch.equal(normed, call(**given, backend=backend)[1].to(where["dtype"]))


def test_no_offset():
    """A block has more rows than there are."""
    given = {name: t.float().to(HERE).requires_grad_() for name, t in example((3, 16)).items()}
    gradients = [
        torch.autograd.grad(call(**given, eps=0.0, backend=backend)[1].sum(), list(given.values()))
        for backend in ("triton", "torch")
    ]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's
def test_what_is_no_number_stays_none():
    x = torch.randn(3, 16, device=HERE)
    x[1, 3] = torch.nan
    x[2] = 0
    for options in ({}, {"center": True}, {"eps": 0.0}):
        got, want = (
            add_norm(x, None, torch.ones(16, device=HERE), backend=backend, **options)[1]
            for backend in ("triton", "torch")
        )
        torch.testing.assert_close(got, want, equal_nan=True)


def test_x_and_y_have_gradients_of_their_own():
    given = {name: t.float().to(HERE).requires_grad_() for name, t in example((3, 16)).items()}
    for _ in range(2):  # added to the first ones, in place
        call(**given, backend="triton")[0].sum().backward()
    assert all(torch.equal(given[name].grad, torch.full((3, 16), 2.0, device=HERE)) for name in "xy")


def test_no_rows():
    x = torch.randn(2, 0, 8, device=HERE, requires_grad=True)
    total, normed = add_norm(x, x, torch.ones(8, device=HERE), backend="triton")
    (total + normed).sum().backward()
    assert normed.shape == x.shape


def test_bad_input():
    x = torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match=r"got x \(2, 3, 8\) and y \(3, 8\), weight \(8,\)"):
        add_norm(x, x[0], torch.ones(8))
    with pytest.raises(ValueError, match=r"got x \(2, 3, 8\), weight \(7,\)"):
        add_norm(x, None, torch.ones(7))
    with pytest.raises(ValueError, match=r"expected bias \(8,\), got \(1,\)"):
        add_norm(x, None, torch.ones(8), torch.ones(1))
