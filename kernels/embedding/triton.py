"""Vectors of tokens in Triton: a copy forward; backward a product with a one-hot matrix that is made in registers.

A program sums the gradients of a block of vectors over a share of the tokens; shares are added afterwards, in a fixed
order.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import bucket, grid, operator, precision, sum_shares

TOKENS = 64  # a step
PROGRAMS = 132 * 4  # of the backward: what fills an H100


@triton.jit
def forward_kernel(weight, tokens, y, N, V, D, BT: tl.constexpr, BD: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    d = tl.program_id(1) * BD + tl.arange(0, BD)[None, :]
    token = tl.load(tokens + n, mask=n < N, other=0).to(tl.int64)[:, None]
    known = (token >= 0) & (token < V)
    row = tl.load(weight + token * D + d, mask=known & (d < D), other=float("nan"))
    tl.store(y + n[:, None] * D + d, row, mask=(n < N)[:, None] & (d < D))


@triton.jit
def backward_kernel(
    dy, tokens, partial, N, V, D,
    BT: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial (shares, V, D): the sums of a block of vectors over this share of the tokens."""
    share = tl.program_id(0)
    v = tl.program_id(1) * BV + tl.arange(0, BV)[:, None]
    d = tl.program_id(2) * BD + tl.arange(0, BD)[None, :]
    total = tl.zeros((BV, BD), tl.float32)
    for step in range(share, tl.cdiv(N, BT), tl.num_programs(0)):
        n = tl.cast(step, tl.int64) * BT + tl.arange(0, BT)
        token = tl.load(tokens + n, mask=n < N, other=-1)
        row = tl.load(dy + n[:, None] * D + d, mask=(n < N)[:, None] & (d < D), other=0.0)
        total = tl.dot((v == token[None, :]).to(row.dtype), row, total, input_precision=PRECISION)
    place = partial + share.to(tl.int64) * V * D + v * D + d
    tl.store(place, total, mask=(v < V) & (d < D))


@operator("mad::embedding")
def look_up(weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """weight (V, D), tokens (N,), both contiguous -> (N, D)."""
    rows, width = weight.shape
    y = weight.new_empty(tokens.numel(), width)
    if y.numel():
        columns = bucket(width, 16, 128)
        forward_kernel[grid(triton.cdiv(tokens.numel(), TOKENS), triton.cdiv(width, columns), 1)](
            weight, tokens, y, tokens.numel(), rows, width, BT=TOKENS, BD=columns, num_warps=4
        )
    return y


@look_up.register_fake
def _(weight, tokens):
    return weight.new_empty(tokens.numel(), weight.shape[1])


@operator("mad::embedding_backward")
def gradient(dy: torch.Tensor, tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """dy (N, D) contiguous -> (rows, D), fp32."""
    width = dy.shape[1]
    vectors, columns = bucket(rows, 16, 64), bucket(width, 16, 128)
    across, along = triton.cdiv(rows, vectors), triton.cdiv(width, columns)
    shares = max(1, min(triton.cdiv(tokens.numel(), TOKENS), PROGRAMS // (across * along)))
    partial = dy.new_empty(shares, rows, width, dtype=torch.float32)
    backward_kernel[(shares, across, along)](
        dy, tokens, partial, tokens.numel(), rows, width,
        BT=TOKENS, BV=vectors, BD=columns, PRECISION=precision(dy.dtype), num_warps=4, num_stages=2,
    )  # fmt: skip
    return sum_shares(partial)


@gradient.register_fake
def _(dy, tokens, rows):
    return dy.new_empty(rows, dy.shape[1], dtype=torch.float32)


def keep(ctx, inputs, output):
    weight, tokens = inputs
    ctx.rows, ctx.dtype = len(weight), weight.dtype
    ctx.save_for_backward(tokens)


def backward(ctx, dy):
    return gradient(dy.contiguous(), *ctx.saved_tensors, ctx.rows).to(ctx.dtype), None


look_up.register_autograd(backward, setup_context=keep)


def embedding(weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """See kernels.embedding."""
    return look_up(weight.contiguous(), tokens.flatten().contiguous()).view(*tokens.shape, weight.shape[1])
