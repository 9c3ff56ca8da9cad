"""Sliding attention, both forms, against a dense masked softmax."""

import pytest
import torch

from kernels.sliding_attention import sliding_attention, sliding_step
from kernels.testing import relative_error, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(q, k, v, window):
    t = torch.arange(q.shape[2], device=q.device)
    seen = (t[None, :] <= t[:, None]) & (t[None, :] > t[:, None] - window)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
    return torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1) @ v


def heads(batch, heads, length, d, dv):
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, heads, length, d).double()
    return {"q": q, "k": k, "v": torch.randn(batch, heads, length, dv).double()}


SHAPES = [
    # batch, heads, length, d, dv, window
    (1, 1, 1, 16, 16, 1),
    (2, 3, 63, 16, 24, 5),
    (1, 1, 127, 100, 16, 33),
    (1, 2, 200, 24, 24, 70),
    (1, 1, 300, 8, 16, 140),  # blocks that all see between the window's edges
    (1, 1, 192, 8, 8, 192),  # none but the diagonal's are crossed
]


@pytest.mark.parametrize("batch, h, length, d, dv, window", [*SHAPES, (1, 1, 40, 16, 16, 1000)])
def test_equals_the_masked_softmax(where, batch, h, length, d, dv, window):
    verify(sliding_attention, oracle, heads(batch, h, length, d, dv), window=window, **where)


@pytest.mark.parametrize("batch, h, length, d, dv, window", SHAPES)
def test_reference_is_exact(batch, h, length, d, dv, window):
    given = heads(batch, h, length, d, dv)
    assert relative_error(sliding_attention(**given, window=window), oracle(**given, window=window)) < 1e-10


def test_large_gradients_in_half_precision():
    """Gradients of scores beyond the range of fp16, of q and k within it."""
    torch.manual_seed(0)
    given = [(torch.randn(1, 1, 20, 64) * size).half().to(HERE) for size in (0.3, 0.3, 4.0)]
    dy = (torch.randn(1, 1, 20, 64, generator=torch.Generator().manual_seed(1)) * 8192).half().to(HERE)

    def gradients(tensors, run, dy):
        leaves = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(run(*leaves, 8), leaves, dy)

    got = gradients(given, lambda *args: sliding_attention(*args, backend="triton"), dy)
    want = gradients([t.double() for t in given], oracle, dy.double())
    assert all(relative_error(a, b) < 5e-3 for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("window", [5, 40])
def test_queries_of_another_type(backend, window):
    q, k, v = (t.float().to(HERE) for t in heads(1, 2, 23, 16, 16).values())
    y = sliding_attention(q, k, v.half(), window, backend=backend)
    assert y.dtype == torch.float16 and relative_error(y, oracle(q, k, v, window)) < 5e-3


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("window", [1, 5, 40])
def test_step_by_step_through_the_ring(backend, window):
    given = {name: t.float().to(HERE) for name, t in heads(2, 3, 23, 20, 24).items()}
    want = oracle(**given, window=window)
    keys = torch.full((2, 3, window, 20), float("nan"), device=HERE)  # what was never written must not matter
    values = torch.full((2, 3, window, 24), float("nan"), device=HERE)
    cache, position = (keys, values), torch.zeros(1, dtype=torch.int64, device=HERE).expand(2)
    for t in range(23):
        q, k, v = (x[:, :, t] for x in given.values())
        y, cache = sliding_step(q, k, v, cache, position, backend=backend)
        assert relative_error(y, want[:, :, t]) < 1e-5
        position = position + 1


def test_is_a_well_formed_operator():
    from kernels.sliding_attention import triton

    q, k, v = (t.float().to(HERE).requires_grad_() for t in heads(1, 1, 9, 16, 16).values())
    torch.library.opcheck(triton.forward, (q, k, v, 4))


def test_bad_input():
    q = torch.randn(1, 2, 8, 16)
    with pytest.raises(ValueError, match="window must be a whole number of at least 1"):
        sliding_attention(q, q, q, 0)
    with pytest.raises(ValueError, match=r"expected q, k \(B, H, T, d\)"):
        sliding_attention(q, q[:, :1], q, 3)
    with pytest.raises(ValueError, match=r"expected a cache of keys \(B, H, window, 16\)"):
        sliding_step(q[:, :, 0], q[:, :, 0], q[:, :, 0], (q, q[:, :1]), torch.zeros(1, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # of the interpreter
def test_a_row_without_a_softmax_is_not_a_number():
    q, k = torch.ones(1, 1, 2, 16, device=HERE), -torch.ones(1, 1, 2, 16, device=HERE)
    q[0, 0, 1] = torch.inf
    for backend in ("triton", "torch"):
        y = sliding_attention(q, k, k, 1, backend=backend)
        assert y[0, 0, 0].isfinite().all() and y[0, 0, 1].isnan().all()
