"""What the Triton kernels share: the operators that launch them, block sizes by bucket, the precision of products on
matrix units, the grid, and rows of a sequence as tiles.

Block sizes come from shapes by named rules, not from an autotuner: a sweep over many shapes then compiles each kernel a
handful of times. Ranks stay small: no block below 16, the least a matrix unit takes.
"""
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

import math
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

# Multiply-adds are fused, as every Triton up to 3.9 does by default; 3.10 changes the default, 3.9 asks to say so.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x LOG2E), the faster of the two
MOST = 65535  # programs that CUDA allows on the second and on the third axis of a grid; on the first, 2^31 - 1


def operator(name: str) -> Callable[[Callable], Any]:
    """`@operator("mad::name")`: a torch.library custom operator, of a tensor first, whose kernels run where that lies.

    Triton launches on the current device, whichever has the tensors: on another GPU's memory, an illegal access.
    """

    def define(function: Callable) -> Any:
        @wraps(function)
        def run(first: torch.Tensor, *others, **options):
            if elsewhere(first):
                with torch.cuda.device(first.device):
                    return function(first, *others, **options)
            return function(first, *others, **options)

        return torch.library.custom_op(name, run, mutates_args=())

    return define


def elsewhere(t: torch.Tensor) -> bool:
    """Whether it lies on a GPU that is not the current one."""
    return t.is_cuda and t.get_device() != torch.cuda.current_device()


def bucket(n: int, low: int = 16, high: int = 128) -> int:
    """The smallest power of two >= n, within [low, high] (powers of two themselves)."""
    return max(low, min(high, 1 << max(0, n - 1).bit_length()))


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: three TF32 products a product where inputs are fp32 (about 1e-6), else exact."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def grid(first: int, *others: int) -> tuple[int, ...]:
    """The grid of a launch whose shape could be more than the grid's axes hold.

    Raises:
        ValueError: more than 65,535 programs on the second or third axis. A launch would call it an invalid argument.
    """
    if max(others, default=0) > MOST:
        raise ValueError(
            f"expected at most {MOST} programs on the second and third axis of a kernel's grid (CUDA's limit), got a "
            f"grid of {(first, *others)}: give the kernel fewer or shorter sequences at a time, or backend='torch'"
        )
    return first, *others


def near(x: torch.Tensor, axes: int = 2) -> bool:
    """Whether offsets along the last `axes` axes, those of a sequence, have no more than 32 bits."""
    return sum((n - 1) * step for n, step in zip(x.shape[-axes:], x.stride()[-axes:], strict=True)) < 2**31


def within_reach(x: torch.Tensor, axes: int = 2) -> torch.Tensor:
    """x, laid out anew where it is not `near`."""
    return x if near(x, axes) else x.contiguous()


def unit_stride(x: torch.Tensor) -> torch.Tensor:
    """The same, with rows that lie next to each other in memory, wherever they start."""
    return within_reach(x) if x.stride(-1) == 1 else x.contiguous()


def aligned(x: torch.Tensor) -> torch.Tensor:
    """The same, with the last axis padded to a multiple of 16, other strides such too: loads of 16 bytes."""
    if x.shape[-1] % 16:
        x = F.pad(x, (0, -x.shape[-1] % 16))
    return unit_stride(x) if all(step % 16 == 0 for step in x.stride()[:-1]) else x.contiguous()


def sum_shares(partial: torch.Tensor) -> torch.Tensor:
    """(S, ...) fp32, the sums of S programs -> their sum (...), contiguous, in an order that is always the same; of one
    program what it has.

    torch's own takes an H200 8 us for a hundred numbers of each, as it shares them out first; for many it does not.
    """
    partial, (shares, *shape) = partial.contiguous(), partial.shape
    if shares == 1:
        return partial[0]
    number = math.prod(shape)
    if number > 1 << 13:  # up to that, offsets of 32 bits suffice for more programs than any kernel has
        return partial.sum(0)
    sums = partial.new_empty(shape)
    shares_kernel[(triton.cdiv(number, 8),)](partial, sums, shares, number, BS=512, BN=8, num_warps=8)
    return sums


def first_columns(x: torch.Tensor, number: int) -> torch.Tensor:
    """Contiguous x (H, N) -> (H, number), contiguous, with zeros where x has fewer columns."""
    if x.shape[1] > number:
        return x[:, :number].clone(memory_format=torch.contiguous_format)
    return x if x.shape[1] == number else F.pad(x, (0, number - x.shape[1]))


@triton.jit
def shares_kernel(partial, sums, S, N, BS: tl.constexpr, BN: tl.constexpr):
    """sums (N,) of partial (S, N)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    held = tl.zeros((BS, BN), tl.float32)
    for first in range(0, S, BS):
        s = first + tl.arange(0, BS)[:, None]
        held += tl.load(partial + s * N + n, mask=(s < S) & (n < N), other=0.0)
    tl.store(sums + n, tl.sum(held, 0), mask=n < N)


@triton.jit
def sequence():
    """Which of B H sequences a program of a grid (blocks, H, B) works on, int64: batch times heads is more than one
    axis may hold. Programs start in the order of the axes, so blocks of a sequence share the L2 cache."""
    return tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def load_rows(x, t, T, stride, width, D: tl.constexpr, WHOLE: tl.constexpr = False):
    """Rows t of the T at x, as (rows, D), zeros outside. WHOLE: no row is."""
    c = tl.arange(0, D)[None, :]
    place = x + t[:, None] * stride + c
    if WHOLE:
        return tl.load(place, mask=c < width, other=0.0)
    else:
        return tl.load(place, mask=(t[:, None] < T) & (c < width), other=0.0)


@triton.jit
def store_rows(x, t, T, stride, width, tile):
    c = tl.arange(0, tile.shape[1])[None, :]
    tl.store(x + t[:, None] * stride + c, tile.to(x.dtype.element_ty), mask=(t[:, None] < T) & (c < width))
