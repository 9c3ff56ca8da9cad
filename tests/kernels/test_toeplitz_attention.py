"""Toeplitz attention against the sum over pairs of tokens, written as a loop over distances."""

from typing import Any

import pytest
import torch

from kernels.testing import relative_error, verify
from kernels.toeplitz_attention import reference, toeplitz_attention

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(q, k, v, taps):
    y = torch.zeros_like(v)
    for j in range(min(q.shape[2], taps.shape[1])):
        length = q.shape[2] - j
        score = (q[:, :, j:] * k[:, :, :length]).sum(-1, keepdim=True)
        y = y + torch.nn.functional.pad(taps[:, j].view(-1, 1, 1) * score * v[:, :, :length], (0, 0, j, 0))
    return y


def inputs(batch, heads, length, d, dv, taps, channel_first=False) -> dict[str, Any]:
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, heads, length, d).double()
    given = {"q": q, "k": k, "v": torch.randn(batch, heads, length, dv).double()}
    if channel_first:  # (H, d, B, T) in memory
        order, back = (1, 3, 0, 2), (2, 0, 3, 1)
        given = {name: t.permute(order).contiguous().permute(back) for name, t in given.items()}
    return given | {"taps": torch.randn(heads, taps).double()}


SHAPES = [
    (1, 1, 1, 16, 8, 1),
    (2, 3, 63, 16, 16, 63),
    (1, 1, 128, 16, 16, 100),  # blocks and widths without overhang
    (2, 1, 127, 24, 8, 20),
    (1, 3, 127, 16, 16, 150),
    (1, 1, 200, 24, 16, 200),
    (1, 3, 200, 16, 8, 70),
]


@pytest.mark.parametrize("batch, h, length, d, dv, taps", SHAPES)
@pytest.mark.parametrize("channel_first", [False, True])
def test_equals_the_sum_over_pairs(where, batch, h, length, d, dv, taps, channel_first):
    verify(toeplitz_attention, oracle, inputs(batch, h, length, d, dv, taps, channel_first), wide=("taps",), **where)


@pytest.mark.parametrize("batch, length", [(5, 150), (8, 64)])
def test_several_batch_rows_a_program(where, batch, length, monkeypatch):
    """Four, as bf16 alone has them by itself."""
    from kernels.toeplitz_attention import triton

    tiling = triton.tiling
    monkeypatch.setattr(triton, "tiling", lambda *shape: tiling(*shape) | {"ROWS": 4})
    monkeypatch.setattr(triton, "PROGRAMS", 1)
    verify(toeplitz_attention, oracle, inputs(batch, 1, length, 16, 16, 90, True), wide=("taps",), **where)


@pytest.mark.parametrize("batch, h, length, d, dv, taps", SHAPES)
@pytest.mark.parametrize("pairs", [1, 1024])
def test_reference_is_exact_both_ways(batch, h, length, d, dv, taps, pairs, monkeypatch):
    monkeypatch.setattr(reference, "PAIRS_UPTO", pairs)
    given = inputs(batch, h, length, d, dv, taps)
    assert relative_error(reference.by_outer_products(**given), oracle(**given)) < 1e-10
    assert relative_error(toeplitz_attention(**given), oracle(**given)) < 1e-10


def test_weights_beyond_the_range_of_fp16(where):
    """Scores of 10,000 and more times taps of 20: the weights need not fit into the type of the data."""
    given = inputs(1, 1, 70, 16, 16, 70)
    scale = {"q": 40.0, "k": 40.0, "v": 1e-4, "taps": 20.0}
    given = {name: t * scale[name] for name, t in given.items()}
    verify(toeplitz_attention, oracle, given, wide=("taps",), gradients=False, **where)


@pytest.mark.parametrize("batch, length, taps", [(2, 5, 0), (2, 0, 4), (2, 0, 0), (0, 5, 4)])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nothing_at_all_of_one_dimension(backend, batch, length, taps):
    given = [t.float().to(HERE).requires_grad_() for t in inputs(batch, 3, length, 16, 8, taps).values()]
    y = toeplitz_attention(*given, backend=backend)
    assert torch.equal(y, torch.zeros_like(given[2]))
    for t, gradient in zip(given, torch.autograd.grad(y.sum(), given), strict=True):
        assert torch.equal(gradient, torch.zeros_like(t))


def test_y_is_laid_out_as_v():
    q, k, v, taps = (t.float().to(HERE) for t in inputs(2, 3, 40, 16, 16, 40, True).values())
    assert toeplitz_attention(q, k, v, taps, backend="triton").stride() == v.stride()


def test_is_a_well_formed_operator():
    from kernels.toeplitz_attention import triton

    given = inputs(2, 2, 9, 16, 8, 12, True).values()
    torch.library.opcheck(triton.attend, tuple(t.float().to(HERE).requires_grad_() for t in given))


def test_bad_input():
    q = torch.randn(1, 2, 8, 16)
    for taps in (torch.randn(3, 8), torch.randn(8)):
        with pytest.raises(ValueError, match=r"expected taps \(H, K\) of 2 heads"):
            toeplitz_attention(q, q, q, taps)
    with pytest.raises(ValueError, match=r"expected q, k \(B, H, T, d\)"):
        toeplitz_attention(q, q[:, :1], q, torch.randn(2, 8))
