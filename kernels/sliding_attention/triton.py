"""Sliding attention in Triton: flash attention whose loops run over the blocks in sight and no others.

Scores never reach memory. Forward keeps the logarithm of each softmax's denominator; backward recomputes the weights
from it, in one kernel a block of queries (dq) and one a block of keys (dk, dv), so nothing is added up atomically.
Softmax statistics and sums are fp32; weights are rounded to the data's type where they enter a product.

Only blocks that the diagonal or the window's far edge crosses need look at who sees whom: with heads up to 64 wide that
costs as much as the products. So there the loop falls into phases: the far edge, what every row sees, the diagonal.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.linear_attention.sums import sum_gradient
from kernels.tiles import LOG2E, bucket, grid, load_rows, operator, precision, sequence, store_rows

NARROW, WIDE, ALL = (tl.constexpr(n) for n in range(3))  # one loop, as if all were crossed; phases; no far edge


@triton.jit
def _behind(start, T, window, SIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """Keys in sight of a block of queries: the first, the first that all see, the diagonal block, the end."""
    end = tl.minimum(start + BLOCK, T)
    first = tl.maximum(start - window + 1, 0) // BLOCK * BLOCK
    if SIGHT == NARROW:
        seen, diagonal = end, end  # as if all were at the far edge
    else:
        seen, diagonal = first, start
    if SIGHT == WIDE:
        seen = tl.minimum(tl.cdiv(tl.maximum(start + BLOCK - window, 0), BLOCK) * BLOCK, start)
    return first, seen, diagonal, end


@triton.jit
def _ahead(start, T, window, SIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """Queries in sight of a block of keys: the diagonal block, the first after it and at the far edge, the end."""
    end = tl.minimum(start + BLOCK - 1 + window, T)
    if SIGHT == NARROW:
        seen, edge = end, end  # as if all were on the diagonal
    else:
        seen, edge = tl.minimum(start + BLOCK, T), end
    if SIGHT == WIDE:
        edge = tl.minimum((start + window) // BLOCK * BLOCK, end)
    return start, seen, edge, end


@triton.jit
def _attend(
    acc, total, highest, query, k, v, row, low, high, m, T, window, scale,
    d: tl.constexpr, dv: tl.constexpr, CROSSED: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The running softmax of queries m, over keys low ... high. scale: to base 2."""
    for block in range(low, high, BLOCK):
        n = block + tl.arange(0, BLOCK)
        key = load_rows(k + row * d, n, T, d, d, D, WHOLE)
        value = load_rows(v + row * dv, n, T, dv, dv, DV, WHOLE)
        s = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        if CROSSED:
            s = tl.where((n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window), s, float("-inf"))
        now = tl.maximum(highest, tl.max(s, 1) * scale)
        anchor = now
        if CROSSED:  # a row may have seen nothing yet
            anchor = tl.where(now == float("-inf"), 0.0, now)
        weight = tl.exp2(s * scale - anchor[:, None])
        fade = tl.exp2(highest - anchor)
        total = total * fade + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * fade[:, None], input_precision=PRECISION)
        highest = now
    return acc, total, highest


@triton.jit
def forward_kernel(
    q, k, v, y, lse, T, window, scale,
    d: tl.constexpr, dv: tl.constexpr, SIGHT: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = sequence() * T
    start = tl.program_id(0) * BLOCK
    m = start + tl.arange(0, BLOCK)
    query = load_rows(q + row * d, m, T, d, d, D, WHOLE)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, DV), tl.float32)
    first, seen, diagonal, end = _behind(start, T, window, SIGHT, BLOCK)
    if SIGHT != ALL:
        acc, total, highest = _attend(
            acc, total, highest, query, k, v, row, first, seen, m, T, window, scale, d, dv,
            True, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
    if SIGHT != NARROW:
        acc, total, highest = _attend(
            acc, total, highest, query, k, v, row, seen, diagonal, m, T, window, scale, d, dv,
            False, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
        acc, total, highest = _attend(
            acc, total, highest, query, k, v, row, diagonal, end, m, T, window, scale, d, dv,
            True, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
    total = tl.where(m < T, total, 1.0)  # rows past the end see nothing
    store_rows(y + row * dv, m, T, dv, dv, acc / total[:, None])
    tl.store(lse + row + m, highest + tl.log2(total), mask=m < T)


@triton.jit
def _descend(
    acc, query, gradient, norm, delta, k, v, row, low, high, m, T, window, scale, factor,
    d: tl.constexpr, dv: tl.constexpr, CROSSED: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of queries m, over keys low ... high. `factor` comes before the rounding: fp16's range is narrow."""
    for block in range(low, high, BLOCK):
        n = block + tl.arange(0, BLOCK)
        key = load_rows(k + row * d, n, T, d, d, D, WHOLE)
        value = load_rows(v + row * dv, n, T, dv, dv, DV, WHOLE)
        s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale - norm[:, None]
        if CROSSED:
            s = tl.where((n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window), s, float("-inf"))
        slope = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
        ds = tl.exp2(s) * (slope + delta[:, None]) * factor
        acc = tl.dot(ds.to(key.dtype), key, acc, input_precision=PRECISION)
    return acc


@triton.jit
def queries_kernel(
    q, k, v, dy, lse, delta, dq, T, window, scale, factor,
    d: tl.constexpr, dv: tl.constexpr, SIGHT: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries. delta: -dy.y; factor: of the scores, scale the same to base 2."""
    row = sequence() * T
    start = tl.program_id(0) * BLOCK
    m = start + tl.arange(0, BLOCK)
    query = load_rows(q + row * d, m, T, d, d, D, WHOLE)
    gradient = load_rows(dy + row * dv, m, T, dv, dv, DV, WHOLE)
    norm = tl.load(lse + row + m, mask=m < T, other=0.0)
    mean = tl.load(delta + row + m, mask=m < T, other=0.0)
    acc = tl.zeros((BLOCK, D), tl.float32)
    first, seen, diagonal, end = _behind(start, T, window, SIGHT, BLOCK)
    if SIGHT != ALL:
        acc = _descend(
            acc, query, gradient, norm, mean, k, v, row, first, seen, m, T, window, scale, factor, d, dv,
            True, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
    if SIGHT != NARROW:
        acc = _descend(
            acc, query, gradient, norm, mean, k, v, row, seen, diagonal, m, T, window, scale, factor, d, dv,
            False, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
        acc = _descend(
            acc, query, gradient, norm, mean, k, v, row, diagonal, end, m, T, window, scale, factor, d, dv,
            True, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
    store_rows(dq + row * d, m, T, d, d, acc)


@triton.jit
def _gather(
    acc_k, acc_v, key, value, q, dy, lse, delta, row, low, high, n, T, window, scale, factor,
    d: tl.constexpr, dv: tl.constexpr, CROSSED: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of keys n, over queries low ... high: scores are formed transposed. Queries past
    the end, all zeros, weigh 1 and add nothing."""
    for block in range(low, high, BLOCK):
        m = block + tl.arange(0, BLOCK)
        query = load_rows(q + row * d, m, T, d, d, D, WHOLE)
        gradient = load_rows(dy + row * dv, m, T, dv, dv, DV, WHOLE)
        norm = tl.load(lse + row + m, mask=m < T, other=0.0)
        mean = tl.load(delta + row + m, mask=m < T, other=0.0)
        s = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale - norm[None, :]
        if CROSSED:
            s = tl.where((n[:, None] <= m[None, :]) & (n[:, None] > m[None, :] - window), s, float("-inf"))
        weight = tl.exp2(s)
        acc_v = tl.dot(weight.to(gradient.dtype), gradient, acc_v, input_precision=PRECISION)
        slope = tl.dot(value, tl.trans(gradient), input_precision=PRECISION)
        ds = weight * (slope + mean[None, :]) * factor
        acc_k = tl.dot(ds.to(query.dtype), query, acc_k, input_precision=PRECISION)
    return acc_k, acc_v


@triton.jit
def keys_kernel(
    q, k, v, dy, lse, delta, dk, dvalue, T, window, scale, factor,
    d: tl.constexpr, dv: tl.constexpr, SIGHT: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys."""
    row = sequence() * T
    start = tl.program_id(0) * BLOCK
    n = start + tl.arange(0, BLOCK)
    key = load_rows(k + row * d, n, T, d, d, D, WHOLE)
    value = load_rows(v + row * dv, n, T, dv, dv, DV, WHOLE)
    acc_k = tl.zeros((BLOCK, D), tl.float32)
    acc_v = tl.zeros((BLOCK, DV), tl.float32)
    diagonal, seen, edge, end = _ahead(start, T, window, SIGHT, BLOCK)
    acc_k, acc_v = _gather(
        acc_k, acc_v, key, value, q, dy, lse, delta, row, diagonal, seen, n, T, window, scale, factor, d, dv,
        True, WHOLE, D, DV, BLOCK, PRECISION,
    )  # fmt: skip
    if SIGHT != NARROW:
        acc_k, acc_v = _gather(
            acc_k, acc_v, key, value, q, dy, lse, delta, row, seen, edge, n, T, window, scale, factor, d, dv,
            False, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
    if SIGHT == WIDE:
        acc_k, acc_v = _gather(
            acc_k, acc_v, key, value, q, dy, lse, delta, row, edge, end, n, T, window, scale, factor, d, dv,
            True, WHOLE, D, DV, BLOCK, PRECISION,
        )  # fmt: skip
    store_rows(dk + row * d, n, T, d, d, acc_k)
    store_rows(dvalue + row * dv, n, T, dv, dv, acc_v)


def tiling(q: torch.Tensor, v: torch.Tensor, window: int) -> dict:
    """Block sizes by head width: what three products of a tile leave of the registers. With wide heads products cost so
    much more than looking that one loop, which takes fewer registers, does for all windows."""
    widths = {"D": bucket(q.shape[-1], 16, 256), "DV": bucket(v.shape[-1], 16, 256)}
    widest = max(widths.values())
    single = q.dtype == torch.float32  # three TF32 products a product
    block = 16 if single else 64 if widest <= 128 else 32
    schedule = {"num_warps": 4 if widest <= 64 else 8}
    schedule["num_stages"] = 1 if single or widest > 128 else 2 if widest > 32 else 3
    if single:
        schedule["maxnreg"] = 240  # the assembler aims at fewer, and spills
    sight = NARROW if window < 2 * block or widest > 64 else ALL if window >= q.shape[2] else WIDE
    phases = {"SIGHT": sight.value, "WHOLE": q.shape[2] % block == 0}
    return widths | schedule | phases | {"BLOCK": block, "PRECISION": precision(q.dtype)}


@operator("mad::sliding_attention")
def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v contiguous -> y, and lse (B, H, T) in base 2, fp32."""
    batch, heads, length, d = q.shape
    y, lse = torch.empty_like(v), q.new_empty(batch, heads, length, dtype=torch.float32)
    options = tiling(q, v, window)
    forward_kernel[grid(triton.cdiv(length, options["BLOCK"]), heads, batch)](
        q, k, v, y, lse, length, window, d**-0.5 * LOG2E.value, d, v.shape[-1], **options
    )
    return y, lse


@forward.register_fake
def _(q, k, v, window):
    return torch.empty_like(v), q.new_empty(q.shape[:3], dtype=torch.float32)


@operator("mad::sliding_attention_backward")
def backward(
    dy: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, y: torch.Tensor, lse: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, length, d = q.shape
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    delta = sum_gradient(dy, y, True)
    options = tiling(q, v, window)
    sizes = (length, window, d**-0.5 * LOG2E.value, d**-0.5, d, v.shape[-1])
    programs = grid(triton.cdiv(length, options["BLOCK"]), heads, batch)
    queries_kernel[programs](q, k, v, dy, lse, delta, dq, *sizes, **options)
    keys_kernel[programs](q, k, v, dy, lse, delta, dk, dv, *sizes, **options)
    return dq, dk, dv


@backward.register_fake
def _(dy, q, k, v, y, lse, window):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def save(ctx, inputs, output):
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def differentiate(ctx, dy, _):
    q, k, v, y, lse = ctx.saved_tensors
    return *backward(dy.contiguous(), q, k, v, y, lse, ctx.window), None


forward.register_autograd(differentiate, setup_context=save)


def sliding_attention(q, k, v, window: int) -> torch.Tensor:
    """See kernels.sliding_attention."""
    return forward(q.contiguous(), k.contiguous(), v.contiguous(), min(window, q.shape[2]))[0]
