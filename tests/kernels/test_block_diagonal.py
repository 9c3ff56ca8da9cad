"""Block-diagonal and Monarch products against dense matrices."""

import pytest
import torch

import kernels
from kernels.block_diagonal_matmul import block_diagonal_glu, block_diagonal_matmul
from kernels.monarch_matmul import monarch_matmul
from kernels.testing import relative_error, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}


def dense_blocks(x, w):
    return x @ torch.block_diag(*w)


def dense_glu(x, gate, value, activation):
    return ACTIVATIONS[activation](dense_blocks(x, gate)) * dense_blocks(x, value)


def dense_monarch(x, w1, w2):
    """With both permutations written out as matrices."""
    blocks, count = w2.shape[0], w1.shape[0] * w1.shape[1]
    first = torch.block_diag(*w1)  # (k q, k p)
    between = torch.zeros(count, count, dtype=x.dtype, device=x.device)
    for j in range(count):  # output j of the first product is feature j // l of block j % l
        between[j % blocks * w2.shape[2] + j // blocks, j] = 1
    second = torch.block_diag(*w2)  # (l s, l r)
    after = torch.zeros(second.shape[0], second.shape[0], dtype=x.dtype, device=x.device)
    for j in range(second.shape[0]):  # output s of block l goes to s l + l
        after[j % w2.shape[1] * blocks + j // w2.shape[1], j] = 1
    return x @ (after @ second @ between @ first).T


def blocks(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape).double() for shape in shapes]


SHAPES = [((1, 1), (1, 1, 1)), ((2, 35, 12), (4, 3, 5)), ((100, 72), (3, 24, 100)), ((70, 64), (2, 32, 16))]


@pytest.mark.parametrize("x, w", SHAPES)
def test_equals_the_dense_matrix(where, x, w):
    x, w = blocks(x, w)
    verify(block_diagonal_matmul, dense_blocks, {"x": x, "w": w / w.shape[1] ** 0.5}, **where)
    assert relative_error(block_diagonal_matmul(x, w), dense_blocks(x, w)) < 1e-12


def test_a_share_of_the_rows_is_several_blocks(where, monkeypatch):
    """As with many rows: two shares of 300 rows, by turns, the last block not whole."""
    from kernels.block_diagonal_matmul import triton

    monkeypatch.setattr(triton, "PROGRAMS", 4)
    x, w = blocks((300, 12), (2, 6, 5))
    verify(block_diagonal_matmul, dense_blocks, {"x": x, "w": w / 6**0.5}, **where)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("x, w", SHAPES[1:])
def test_gated(where, activation, x, w):
    x, gate, value = blocks(x, w, w)
    given = {"x": x, "gate": gate / w[1] ** 0.5, "value": value / w[1] ** 0.5}
    verify(block_diagonal_glu, dense_glu, given, activation=activation, **where)
    got = block_diagonal_glu(x, gate, value, activation=activation)
    assert relative_error(got, dense_glu(x, gate, value, activation)) < 1e-12


@pytest.mark.parametrize(
    "x, w1, w2",
    [((1, 4), (2, 2, 2), (2, 2, 2)), ((33, 24), (4, 5, 6), (10, 3, 2)), ((2, 9, 64), (2, 32, 32), (4, 7, 16))],
)
def test_monarch(where, x, w1, w2):
    x, w1, w2 = blocks(x, w1, w2)
    given = {"x": x, "w1": w1 / w1.shape[2] ** 0.5, "w2": w2 / w2.shape[2] ** 0.5}
    verify(monarch_matmul, dense_monarch, given, **where)
    assert relative_error(monarch_matmul(x, w1, w2), dense_monarch(x, w1, w2)) < 1e-12


def test_no_rows():
    w = torch.randn(3, 4, 4, device=HERE)
    assert kernels.monarch_matmul(torch.randn(0, 12, device=HERE), w, torch.randn(4, 3, 3, device=HERE)).shape == (
        0,
        12,
    )


def test_weights_may_be_wider_than_the_data(where):
    x, w = blocks((20, 8), (2, 4, 3))
    verify(block_diagonal_matmul, lambda x, w: dense_blocks(x, w.to(x)), {"x": x, "w": w}, wide=("w",), **where)


def test_are_well_formed_operators():
    from kernels.block_diagonal_matmul import triton

    x, w, v = (t.float().to(HERE).requires_grad_() for t in blocks((5, 8), (2, 4, 3), (2, 4, 3)))
    torch.library.opcheck(triton.product, (x, w, False, [4, 1], [3, 1]))
    torch.library.opcheck(triton.glu, (x, w, v, "silu"))


def test_bad_input():
    x, w = torch.randn(2, 8), torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match=r"4 x 3 = 12\), got"):
        kernels.block_diagonal_matmul(x, torch.randn(4, 3, 5))
    with pytest.raises(ValueError, match="did you mean 'gelu'"):
        block_diagonal_glu(x, w, w, activation="gelo")
    with pytest.raises(ValueError, match="gate and value of one shape"):
        block_diagonal_glu(x, w, w[:, :, :2])
    with pytest.raises(ValueError, match=r"expected w1 \(k, q, p\) and w2 \(l, s, r\) with k q = l r"):
        monarch_matmul(x, torch.randn(2, 3, 4), torch.randn(2, 3, 4))
