"""Vectors of tokens against a loop over them in float64."""

import pytest
import torch

import kernels
from kernels.embedding import embedding
from kernels.testing import relative_error, verify
from mad import models

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def loop(weight, tokens):
    return torch.stack([weight[i] for i in tokens.flatten().tolist()]).view(*tokens.shape, weight.shape[1])


def given(rows, width, shape, dtype=torch.int64):
    torch.manual_seed(0)
    return {"weight": torch.randn(rows, width).double(), "tokens": torch.randint(rows, shape).to(dtype)}


@pytest.mark.parametrize(
    "rows, width, shape",
    [(1, 1, (1,)), (16, 128, (3, 63)), (17, 24, (2, 2, 33)), (130, 100, (70,)), (40, 200, (5, 13)), (3, 8, ())],
)
def test_equals_the_loop(where, rows, width, shape):
    verify(embedding, loop, given(rows, width, shape), **where)
    assert torch.equal(embedding(**given(rows, width, shape)), loop(**given(rows, width, shape)))


def test_tokens_of_32_bits_and_layouts(where):
    tensors = given(16, 24, (6, 10), torch.int32)
    tensors = {"weight": tensors["weight"].t().contiguous().t(), "tokens": tensors["tokens"].t()}
    verify(embedding, loop, tensors, **where)


@pytest.mark.parametrize(
    "of", [lambda t: t[:, :1], lambda t: t[:, 0], lambda t: t[:1, ::2], lambda t: t[:1, 0].expand(5)]
)
def test_tokens_that_are_a_view_of_others(where, of):
    tensors = given(16, 24, (6, 10))
    verify(embedding, loop, tensors | {"tokens": of(tensors["tokens"])}, **where)


def test_no_tokens(where):
    weight = torch.randn(4, 8, device=where["device"], requires_grad=True)
    y = embedding(weight, torch.zeros(2, 0, dtype=torch.int64, device=where["device"]), backend="triton")
    y.sum().backward()
    assert y.shape == (2, 0, 8) and weight.grad is not None and not weight.grad.any()


def test_tokens_beyond_the_vocabulary_are_not_numbers_and_have_no_gradient():
    weight = torch.randn(4, 8, device=HERE, requires_grad=True)
    y = embedding(weight, torch.tensor([0, 4, -1], device=HERE), backend="triton")
    y.sum().backward()
    assert y[0].isfinite().all() and y[1:].isnan().all()
    assert weight.grad is not None and weight.grad.sum() == 8
    with pytest.raises(IndexError):
        embedding(torch.randn(4, 8), torch.tensor([4]))


def test_the_model_looks_up_its_tokens_so(monkeypatch):
    taken = []
    monkeypatch.setattr(kernels, "embedding", lambda weight, tokens: taken.append(tokens) or weight[tokens])
    tokens = torch.randint(16, (2, 8))
    models.build("identity", 32, 16, 8)(tokens)
    assert taken and taken[0] is tokens


@pytest.mark.gpu
@pytest.mark.skipif(HERE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_ways_of_a_gpu_agree(backend):
    tensors = {name: t.cuda() for name, t in given(100, 128, (128, 64)).items()}
    weight = tensors["weight"].float().requires_grad_()
    y = embedding(weight, tensors["tokens"], backend=backend)
    dy = torch.randn_like(y)
    y.backward(dy)
    want = torch.zeros(100, 128, dtype=torch.float64, device="cuda")
    want.index_add_(0, tensors["tokens"].flatten(), dy.double().flatten(0, 1))
    assert weight.grad is not None and relative_error(weight.grad, want) < 1e-6


def test_is_a_well_formed_operator():
    from kernels.embedding import triton

    weight = torch.randn(5, 16, device=HERE, requires_grad=True)
    torch.library.opcheck(triton.look_up, (weight, torch.tensor([4, 0, 4], device=HERE)))


def test_bad_input():
    with pytest.raises(ValueError, match=r"expected weight \(V, D\), got \(3,\)"):
        embedding(torch.zeros(3), torch.tensor([0]))
    with pytest.raises(ValueError, match="expected tokens to be integers, got torch.float32"):
        embedding(torch.zeros(3, 2), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        embedding(torch.zeros(3, 2), torch.tensor([0]), backend="tritn")
