"""Taylor attention in Triton, and its reference, against its sum over all pairs, written out."""

import importlib
import math

import pytest
import torch

from kernels.taylor_attention import packed_features, packed_size, taylor_attention, taylor_step
from kernels.testing import relative_error, run, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(q, k, v, *, normalize=True, eps=1e-12):
    """One token after the other."""
    out = []
    for t in range(q.shape[2]):
        x = (q[:, :, t : t + 1] * k[:, :, : t + 1]).sum(-1) / math.sqrt(q.shape[-1])  # (B, H, t + 1)
        w = 1 + x + x**2 / 2
        y = (w.unsqueeze(-1) * v[:, :, : t + 1]).sum(2)
        out.append(y / (w.sum(-1, keepdim=True) + eps) if normalize else y)
    return torch.stack(out, 2)


def inputs(batch, heads, length, d, width, scale=1.0):
    torch.manual_seed(length + d)
    q, k = scale * torch.randn(2, batch, heads, length, d).double()
    return {"q": q, "k": k, "v": torch.randn(batch, heads, length, width).double()}


CASES = [
    # batch, heads, length, d, width, normalize
    (1, 1, 1, 16, 16, False),  # with one token and normalised, the gradients of q and k are 0
    (2, 3, 63, 16, 24, True),
    (1, 1, 127, 24, 100, True),
    (1, 1, 100, 64, 16, False),
]
GIVEN = "batch, heads, length, d, width, normalize"


@pytest.mark.parametrize(GIVEN, CASES)
def test_equals_the_sum(where, batch, heads, length, d, width, normalize):
    verify(taylor_attention, oracle, inputs(batch, heads, length, d, width), normalize=normalize, **where)


@pytest.mark.parametrize("length, d, width, normalize", [(100, 16, 40, True), (200, 3, 16, False)])
def test_states_equal_the_sum(where, monkeypatch, length, d, width, normalize):
    """Spans of 64 tokens that find one another's states."""
    sums = importlib.import_module("kernels.taylor_attention.sums")
    monkeypatch.setattr(sums, "with_states", lambda *_: True)
    monkeypatch.setattr(sums, "SPAN", 64)
    verify(taylor_attention, oracle, inputs(1, 1, length, d, width), normalize=normalize, **where)


@pytest.mark.parametrize("span", [64, 192])
@pytest.mark.parametrize("length, d, width, normalize", [(150, 16, 72, True), (100, 5, 16, False)])
def test_chunks_equal_the_sum(half, monkeypatch, length, d, width, normalize, span):
    """A program for each span, or for the whole sequence."""
    chunks = importlib.import_module("kernels.taylor_attention.chunks")
    monkeypatch.setattr(chunks, "LEAST", 0)
    monkeypatch.setattr(chunks, "spans", lambda q, *_: (-(-q.shape[2] // span), span))
    tensors = inputs(1, 2, length, d, width)
    verify(taylor_attention, oracle, tensors, gradients=False, normalize=normalize, **half)


@pytest.mark.parametrize(
    "length, d, width, normalize, roles",
    [
        (150, 16, 64, True, ("both",)),
        (150, 16, 100, True, ("dk", "dv")),
        (260, 16, 16, False, ("both",)),
        (129, 8, 100, False, ("both",)),
        (70, 8, 24, True, ("dk", "dv")),
    ],
)
def test_spans_equal_the_sum(half, monkeypatch, length, d, width, normalize, roles):
    """Spans of 128 tokens; the keys' gradients in one launch, or in two."""
    monkeypatch.setattr(importlib.import_module("kernels.taylor_attention.chunks"), "LEAST", 0)
    monkeypatch.setattr(importlib.import_module("kernels.taylor_attention.spans"), "roles", lambda *_: roles)
    verify(taylor_attention, oracle, inputs(1, 1, length, d, width), normalize=normalize, **half)


@pytest.mark.parametrize("length, width, kernels", [(70, 64, "spans"), (70, 136, "sums"), (64, 64, "sums")])
def test_the_kernels_that_the_rules_name(half, monkeypatch, length, width, kernels):
    module = importlib.import_module(f"kernels.taylor_attention.{kernels}")
    monkeypatch.setattr(importlib.import_module("kernels.taylor_attention.chunks"), "LEAST", 64)
    calls, backward = [], module.backward
    monkeypatch.setattr(module, "backward", lambda *given: calls.append(1) or backward(*given))
    verify(taylor_attention, oracle, inputs(1, 1, length, 16, width), **half)
    assert calls


def test_long_sequences_in_any_layout(half):
    """Tokens before heads in memory; more of them than meet as pairs by the rules."""

    def turned(function):
        return lambda q, k, v, **options: function(*(t.transpose(1, 2) for t in (q, k, v)), **options).transpose(1, 2)

    tensors = {name: t.transpose(1, 2).contiguous() for name, t in inputs(1, 2, 530, 8, 16).items()}
    verify(turned(taylor_attention), turned(oracle), tensors, **half)


@pytest.mark.parametrize(GIVEN, [*CASES, (1, 1, 400, 4, 5, True)])
def test_reference_equals_the_sum(batch, heads, length, d, width, normalize):
    tensors = inputs(batch, heads, length, d, width)
    got = run(taylor_attention, tensors, {"normalize": normalize, "backend": "torch"}, True)
    for name, value in run(oracle, tensors, {"normalize": normalize}, True).items():
        assert relative_error(got[name], value) < 1e-10, name


def step_oracle(q, k, v, state, *, normalize=True, eps=1e-12):
    """Feature by feature, in the order of `packed_features`."""
    d = q.shape[-1]

    def phi(x):
        pairs = [x[..., i] * x[..., j] / math.sqrt(2 * d if i == j else d) for i in range(d) for j in range(i, d)]
        return torch.stack([torch.ones_like(x[..., 0]), *(x / d**0.25).unbind(-1), *pairs], -1)

    v = torch.cat([v, torch.ones_like(v[..., :1])], -1) if normalize else v
    state = state + torch.einsum("bhf,bhn->bhfn", phi(k), v)
    y = torch.einsum("bhf,bhfn->bhn", phi(q), state)
    return (y[..., :-1] / (y[..., -1:] + eps) if normalize else y), state


@pytest.mark.parametrize("d, width, normalize", [(16, 40, True), (5, 70, True), (1, 1, False), (12, 16, False)])
def test_step_equals_its_definition(where, d, width, normalize):
    torch.manual_seed(d)
    q, k = torch.randn(2, 2, 3, d).double()
    state = torch.randn(2, 3, packed_size(d), width + normalize).double()
    if normalize:  # the sum of some keys' features, so that the weights' sum is positive
        keys = torch.randn(2, 3, 7, d).double()
        state[..., -1] = packed_features(keys).sum(2)
    tensors = {"q": q, "k": k, "v": torch.randn(2, 3, width).double(), "state": state}
    verify(taylor_step, step_oracle, tensors, wide=("state",), gradients=False, normalize=normalize, **where)
    got = taylor_step(**tensors, normalize=normalize, backend="torch")
    for x, y in zip(got, step_oracle(**tensors, normalize=normalize), strict=True):
        assert relative_error(x, y) < 1e-10


def test_steps_equal_the_sequence():
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 1, 2, 9, 6)
    state = torch.zeros(1, 2, packed_size(6), 7)
    want = oracle(q.double(), k.double(), v.double())
    for t in range(9):
        before = state.clone()
        y, new = taylor_step(q[:, :, t], k[:, :, t], v[:, :, t], state, backend="triton")
        assert torch.equal(state, before)  # functional
        assert relative_error(y, want[:, :, t]) < 1e-5
        state = new


@pytest.mark.parametrize("size", [1e-2, 24.0])
def test_half_precision_reaches_beyond_its_range(size, monkeypatch):
    """Scores of 1e-4, and of some 2000, whose polynomial fp16 does not hold; by pairs, and by chunks and spans."""
    for least in (512, 0):
        monkeypatch.setattr(importlib.import_module("kernels.taylor_attention.chunks"), "LEAST", least)
        verify(taylor_attention, oracle, inputs(1, 1, 150, 16, 16, size), dtype=torch.float16, gradients=size < 1)


@pytest.mark.parametrize("sign", [-1, 1])
def test_weights_that_cancel(sign, monkeypatch):
    """Keys opposite to the queries: features far larger than the weights that they add up to, 1/2 and little more."""
    sums = importlib.import_module("kernels.taylor_attention.sums")
    monkeypatch.setattr(sums, "with_states", lambda *_: True)
    monkeypatch.setattr(sums, "SPAN", 64)
    monkeypatch.setattr(importlib.import_module("kernels.taylor_attention.chunks"), "LEAST", 0)
    tensors = inputs(1, 1, 100, 8, 16, 0.1)
    direction = torch.ones(8).double() / 2
    tensors["q"], tensors["k"] = tensors["q"] + direction, tensors["k"] + sign * direction
    verify(taylor_attention, oracle, tensors)
    verify(taylor_attention, oracle, tensors, dtype=torch.float16)


def test_any_layout_and_mixed_types():
    torch.manual_seed(5)
    q, k = torch.randn(2, 2, 20, 3, 8).transpose(2, 3)
    v = torch.randn(2, 1, 20, 8).half().expand(-1, 3, -1, -1)
    got = taylor_attention(q, k, v, backend="triton")
    assert got.dtype == torch.float16
    assert relative_error(got, oracle(q.double(), k.double(), v.double())) < 1e-3


def test_are_well_formed_operators():
    from kernels.taylor_attention import step, triton

    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 1, 5, 4, device=HERE, requires_grad=True) for _ in range(3))
    torch.library.opcheck(triton.attend, (q, k, v, True, 1e-6))
    q, k, v = torch.randn(3, 1, 1, 2, device=HERE)
    checks = ("test_schema", "test_faketensor")  # it has no gradients
    torch.library.opcheck(step.one_token, (q, k, v, torch.ones(1, 1, 6, 3, device=HERE), True, 1e-6), test_utils=checks)


def test_wrong_input_is_named():
    q, v = torch.ones(1, 2, 5, 65), torch.ones(1, 2, 5, 4)
    with pytest.raises(ValueError, match=r"expected q, k \(B, H, T, d\).*\(1, 2, 5, 4\)"):
        taylor_attention(q, v, v)
    with pytest.raises(ValueError, match=r"d up to 64, got q \(1, 2, 5, 65\); use backend='auto'"):
        taylor_attention(q, q, v, backend="triton")
    with pytest.raises(ValueError, match="unknown backend 'trition'"):
        taylor_attention(q, q, v, backend="trition")
    one = torch.ones(1, 2, 4)
    with pytest.raises(ValueError, match=r"expected q, k \(B, H, d\) and v"):
        taylor_step(one, v, one, torch.zeros(1, 2, 15, 5))
    with pytest.raises(ValueError, match=r"expected state \(1, 2, 15, 5\) with normalize=True, got \(1, 2, 16, 5\)"):
        taylor_step(one, one, one, torch.zeros(1, 2, 16, 5))
