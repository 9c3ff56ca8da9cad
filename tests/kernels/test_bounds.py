"""The check of what kernels load and store must reject what leaves a tensor, and nothing else."""
# pyright: reportArgumentType=false

import pytest
import torch
import triton
import triton.language as tl

from kernels.shared_prefix_attention.triton import rows
from kernels.testing import verify, within_bounds
from kernels.tiles import aligned, near, unit_stride

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="looks into Triton's interpreter")


@triton.jit
def _shifted(x, n, shift, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    return tl.load(x + i + shift, mask=i < n, other=0.0)


@triton.jit
def double_kernel(x, y, n, read, write, BLOCK: tl.constexpr):
    """y[i + write] = 2 x[i + read] for i < n."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i + write, 2 * _shifted(x, n, read, BLOCK), mask=i < n)


@triton.jit
def unmasked_kernel(x, y, n, BLOCK: tl.constexpr):
    """The same of all n = BLOCK - 1, but what is loaded past the end is masked where it is stored."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, 2 * tl.load(x + i), mask=i < n)


def double(x, read=0, write=0):
    y = torch.zeros_like(x)
    double_kernel[(1,)](x, y, x.numel(), read, write, BLOCK=64)
    return y


def test_accepts_what_stays_within():
    for size in (1, 5, 64):  # a mask, and none of it false
        x = torch.randn(size)
        with within_bounds():
            torch.testing.assert_close(double(x), 2 * x)


@pytest.mark.parametrize(
    "shifts, what",
    [
        ({"read": 1}, r"double_kernel: load of 4 bytes, 4 bytes outside"),
        ({"read": -3}, r"double_kernel: load of 4 bytes, 12 bytes outside"),
        ({"write": 1}, r"double_kernel: store of 4 bytes, 4 bytes outside"),
        ({"write": -2}, r"double_kernel: store of 4 bytes, 8 bytes outside"),
    ],
)
def test_rejects_what_leaves_a_tensor(shifts, what):
    with pytest.raises(AssertionError, match=what), within_bounds():
        double(torch.randn(5), **shifts)


def test_what_lies_around_a_view_is_outside():
    inside = torch.zeros(3, 8)[1, :5]
    with pytest.raises(AssertionError, match="load of 4 bytes, 4 bytes outside"), within_bounds():
        double(inside, read=1)


def test_a_load_that_is_masked_afterwards_is_seen_by_verify():
    def kernel(x, backend):
        y = torch.empty_like(x)
        unmasked_kernel[(1,)](x, y, 7, BLOCK=8)
        return y

    with pytest.raises(AssertionError, match="unmasked_kernel: load of 4 bytes, 4 bytes outside"):
        verify(kernel, lambda x: 2 * x, {"x": torch.randn(7).double()}, gradients=False)


def test_the_interpreter_is_as_before_afterwards():
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    def parts():
        found = (GridExecutor.__call__, GridExecutor._init_args_hst)
        return *found, InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    before = parts()
    with pytest.raises(AssertionError), within_bounds():
        double(torch.randn(5), read=1)
    assert parts() == before


@pytest.mark.parametrize(
    "shape, steps", [((2, 1, 3, 16), (0, 0, 2**30, 1)), ((2, 2**15 + 1, 16), (0, 2**16, 1))], ids=str
)
def test_what_32_bits_cannot_reach_is_laid_out_anew(shape, steps):
    """Rows that far apart within a sequence, of which kernels count in 32 bits."""
    far = torch.empty(0, device="meta").as_strided(shape, steps)
    close = torch.empty(shape, device="meta")
    assert not near(far) and near(close)
    for change in (unit_stride, aligned):
        assert change(far).stride() == close.stride() and change(close) is close
    if len(shape) == 4:
        tokens = far.transpose(1, 2)
        assert rows(tokens, far.dtype).is_contiguous() and rows(close, far.dtype) is close
