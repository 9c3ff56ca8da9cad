"""The gated channel mixer against two dense products in float64."""

import numpy as np
import pytest
import torch

import kernels
from kernels.gated_mlp import gated_mlp
from kernels.testing import relative_error, verify
from layers.mlp import SwiGLU

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def dense(x, up, down, activation="silu"):
    width = down.shape[1]
    a, b = x @ up[:width].T, x @ up[width:].T
    a = a / (1 + (-a).exp()) if activation == "silu" else a * (1 + torch.erf(a / 2**0.5)) / 2
    return (a * b) @ down.T


def tensors(shape, width, out):
    torch.manual_seed(0)
    dim = shape[-1]
    sizes = {"x": shape, "up": (2 * width, dim), "down": (out, width)}
    scales = {"x": 1.0, "up": dim**-0.5, "down": width**-0.5}
    return {name: torch.randn(size).double() * scales[name] for name, size in sizes.items()}


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(
    "shape, width, out", [((1, 1), 1, 1), ((2, 33, 24), 70, 24), ((130, 16), 40, 100), ((67, 128), 33, 128)]
)
def test_equals_the_dense_products(where, activation, shape, width, out):
    given = tensors(shape, width, out)
    verify(gated_mlp, dense, given, activation=activation, **where)
    assert relative_error(gated_mlp(**given, activation=activation), dense(**given, activation=activation)) < 1e-12


@pytest.mark.parametrize("big", [10.0, 60.0])
def test_activations_that_saturate(where, big):
    given = tensors((20, 8), 12, 8)
    given["up"][12:] /= big  # the values': products of moderate size, also in fp16
    with np.errstate(over="ignore"):  # the interpreter's: exp(100) is infinite, and the sigmoid then 0
        verify(gated_mlp, dense, given | {"x": given["x"] * big}, **where)


def test_weights_may_be_wider_than_the_data(where):
    verify(gated_mlp, lambda x, up, down: dense(x, up.to(x), down.to(x)), tensors((40, 16), 24, 16),
           wide=("up", "down"), **where)  # fmt: skip


def test_frozen_weights_have_no_gradient_and_change_no_other(where):
    given = {name: t.to(where["device"]).float() for name, t in tensors((40, 16), 24, 16).items()}
    leaves = {name: t.requires_grad_() for name, t in given.items()}
    want = torch.autograd.grad(gated_mlp(**leaves, backend="triton").sum(), list(leaves.values()))
    for frozen in leaves:
        some = {name: t.detach().requires_grad_(name != frozen) for name, t in given.items()}
        gated_mlp(**some, backend="triton").sum().backward()
        for (name, t), gradient in zip(some.items(), want, strict=True):
            assert t.grad is None if name == frozen else torch.equal(t.grad, gradient)


def test_no_rows(where):
    given = {name: t.to(where["device"]).float() for name, t in tensors((0, 8), 4, 8).items()}
    assert gated_mlp(**given, backend="triton").shape == (0, 8)


def test_computes_in_the_type_of_autocast():
    x, up, down = (t.float() for t in tensors((20, 8), 4, 8).values())
    with torch.autocast("cpu", torch.bfloat16):
        assert gated_mlp(x, up, down).dtype == torch.bfloat16
        assert gated_mlp(x.double(), up, down).dtype == torch.float64  # as products do
    assert gated_mlp(x, up, down).dtype == torch.float32


def test_auto_leaves_wide_rows_and_single_precision_to_cublas(monkeypatch):
    from kernels.gated_mlp import triton

    monkeypatch.setattr(kernels.checks, "on_card", lambda t: True)
    taken = []
    monkeypatch.setattr(triton, "gated_mlp", lambda x, up, down, activation: taken.append(x.shape[-1]))
    for dim, dtype in ((16, torch.float16), (16, torch.float32), (144, torch.float16)):
        given = {name: t.to(dtype) for name, t in tensors((20, dim), 4, dim).items()}
        gated_mlp(**given)
    assert taken == [16]


def test_the_layer_is_swiglu():
    layer = SwiGLU(24, 8).double()
    x = torch.randn(2, 8, 24).double()
    assert relative_error(layer(x), dense(x, layer.up.weight, layer.down.weight)) < 1e-12


def test_is_a_well_formed_operator():
    from kernels.gated_mlp import triton

    x, up, down = (t.float().to(HERE).requires_grad_() for t in tensors((20, 16), 16, 16).values())
    torch.library.opcheck(triton.forward, (x, up, down, "silu"))


def test_bad_input():
    x, up, down = (t.float() for t in tensors((20, 8), 4, 8).values())
    with pytest.raises(ValueError, match=r"expected x \(..., D\), up \(2 W, D\) and down \(O, W\), got \(20, 8\)"):
        gated_mlp(x, up[:6], down)
    with pytest.raises(ValueError, match="did you mean 'silu'"):
        gated_mlp(x, up, down, activation="sillu")
    wide = tensors((2, 200), 4, 8)
    with pytest.raises(ValueError, match="128 features at most, got 200; use backend='auto'"):
        gated_mlp(**{name: t.float() for name, t in wide.items()}, backend="triton")
