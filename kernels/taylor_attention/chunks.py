"""Taylor attention forward in half precision, d up to 16: a program walks over the tokens of a head in chunks.

Tokens of a chunk meet as pairs; those before it through a state, 192 features by a tile of values, that stays within
the program: every tensor is read once and written once. Where there are fewer heads than the GPU has room for, the
sequence is cut into spans: a first pass writes what each adds, and a program starts from the sum of those before it.
The sums of the weights, quadratic forms of the queries, come from a kernel of their own: in one with the outputs,
registers run short, and ptxas 12.8 makes code that reads outside its shared memory.

A feature is a product of two columns. Products with 0-1 matrices choose the columns, exactly, and leave them in the
registers where matrix units want a left operand: no feature passes through any memory. Features are formed in fp32 and
rounded to the type of the data, as the weights of pairs are; states add up in fp32 and are rounded where they are read.
fp16's range is narrow: there, rows of a left operand, and a state as a whole, are first scaled by their largest.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl

from kernels.linear_attention.sums import scaled_product, strides
from kernels.taylor_attention.sums import pairs
from kernels.tiles import bucket

D = tl.constexpr(16)  # columns of queries and keys, zeros beyond their own
FEATURES = tl.constexpr(192)  # (D + 1)(D + 2) / 2 = 153, in blocks of
BF = tl.constexpr(64)
PROGRAMS = 264  # two for each SM of an H100: with fewer, sequences are cut
LEAST = 512  # tokens: up to them pairs alone are as fast


@triton.jit
def add_product(p, values, acc):
    """acc + p @ values, p rounded."""
    if values.dtype == tl.float16:
        return acc + scaled_product(p, values, "ieee")
    else:
        return tl.dot(p.to(values.dtype), values, acc)


@triton.jit
def add_read(p, state, acc, dtype: tl.constexpr):
    """acc + p @ state, both rounded."""
    if dtype == tl.float16:
        largest = tl.max(tl.abs(state))
        largest = tl.where(largest > 0, largest, 1.0)
        return acc + scaled_product(p, (state / largest).to(dtype), "ieee") * largest
    else:
        return tl.dot(p.to(dtype), state.to(dtype), acc)


@triton.jit
def chosen(x, column, EDGE: tl.constexpr):
    """x[:, column], 1 where column is -1, fp32: x (C, D), column (BF,). EDGE: there are such columns."""
    e = tl.arange(0, D)[:, None]
    one = tl.dot(x, (e == column[None, :]).to(x.dtype))
    if EDGE:  # added by a product too: as terms they would stay in registers
        one = tl.dot(tl.full(x.shape, 1.0, x.dtype), ((e == 0) & (column < 0)[None, :]).to(x.dtype), one)
    return one


@triton.jit
def read(x, state, acc, LOW: tl.constexpr, scale, dtype: tl.constexpr):
    """acc (C, BN) with what features LOW ... of rows x (C, D), but for their factor, find in the state."""
    first, second, _ = pairs(tl.arange(0, BF) + LOW, D, scale)
    return add_read(chosen(x, first, LOW == 128) * chosen(x, second, LOW == 128), state, acc, dtype)


@triton.jit
def extend(x, values, state, LOW: tl.constexpr, scale):
    """The state with tokens x (D, C), values (C, BN): features LOW ..., their factor twice, as `read` has none."""
    first, second, factor = pairs(tl.arange(0, BF) + LOW, D, scale)
    e = tl.arange(0, D)[None, :]
    one = tl.dot((first[:, None] == e).to(x.dtype), x)
    two = tl.dot((second[:, None] == e).to(x.dtype), x)
    if LOW == 128:
        one += tl.where(first < 0, 1.0, 0.0)[:, None]
        two += tl.where(second < 0, 1.0, 0.0)[:, None]
    return add_product(one * two * (factor * factor)[:, None], values, state)


@triton.jit
def first_state(states, begin, end, n, N, LOW: tl.constexpr, BN: tl.constexpr):
    """The sum of what spans begin ... end - 1 add to a block of the state; begin counts all heads' spans before."""
    state = tl.zeros((BF, BN), tl.float32)
    for span in range(begin, end):
        f = tl.arange(0, BF) + LOW + span * FEATURES
        state += tl.load(states + f.to(tl.int64)[:, None] * N + n[None, :], mask=(n < N)[None, :], other=0.0)
    return state


@triton.jit
def store_state(states, state, row, n, N, LOW: tl.constexpr):
    f = tl.arange(0, BF) + LOW + row * FEATURES
    tl.store(states + f.to(tl.int64)[:, None] * N + n[None, :], state, mask=(n < N)[None, :])


@triton.jit
def weights_kernel(
    q, k, inverse, eps, scale, H, T, d, q_b, q_h, q_t, k_b, k_h, k_t, C: tl.constexpr,
):  # fmt: skip
    """1 / (eps + sum of weights) of every token of a head.

    A token before the chunk adds 1 + x + x^2 / 2 with x = scale q.k: together, their number, scale q.(sum k) and
    scale^2 / 2 q^T (sum k k^T) q.
    """
    head = tl.program_id(0)
    batch, place = (head // H).to(tl.int64), head % H
    q += batch * q_b + place * q_h
    k += batch * k_b + place * k_h
    i, e = tl.arange(0, C), tl.arange(0, D)
    squares, singles = tl.zeros((D, D), tl.float32), tl.zeros((D,), tl.float32)
    for low in range(0, T, C):
        t = low + i
        own = tl.load(q + t[:, None] * q_t + e[None, :], mask=(t < T)[:, None] & (e < d)[None, :], other=0.0)
        keys = tl.load(k + t[None, :] * k_t + e[:, None], mask=(t < T)[None, :] & (e < d)[:, None], other=0.0)
        x = tl.dot(own, keys) * scale  # (C, C)
        total = tl.sum(tl.where(i[:, None] >= i[None, :], 1 + x + 0.5 * x * x, 0.0), 1) + (eps + low)
        wide = own.to(tl.float32)
        form = add_read(wide, squares * (0.5 * scale), tl.zeros((C, D), tl.float32), own.dtype) + singles[None, :]
        total += tl.sum(form * wide, 1) * scale
        tl.store(inverse + head.to(tl.int64) * T + t, 1 / total, mask=t < T)
        squares = add_product(keys.to(tl.float32), tl.trans(keys), squares)
        singles += tl.sum(keys.to(tl.float32), 1)


@triton.jit
def span_kernel(
    k, v, states, scale, H, T, d, N, SPAN, k_b, k_h, k_t, v_b, v_h, v_t, C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """phi(k)^T v of each span: states (B H, spans, 192, dv)."""
    head, span = tl.program_id(0), tl.program_id(1)
    k += (head // H).to(tl.int64) * k_b + head % H * k_h
    v += (head // H).to(tl.int64) * v_b + head % H * v_h
    i, e, n = tl.arange(0, C), tl.arange(0, D), tl.program_id(2) * BN + tl.arange(0, BN)
    s0, s1, s2 = tl.zeros((BF, BN), tl.float32), tl.zeros((BF, BN), tl.float32), tl.zeros((BF, BN), tl.float32)
    for low in range(span * SPAN, tl.minimum((span + 1) * SPAN, T), C):
        t = low + i
        x = tl.load(k + t[None, :] * k_t + e[:, None], mask=(t < T)[None, :] & (e < d)[:, None], other=0.0)
        values = tl.load(v + t[:, None] * v_t + n[None, :], mask=(t < T)[:, None] & (n < N)[None, :], other=0.0)
        s0 = extend(x, values, s0, 0, scale)
        s1 = extend(x, values, s1, 64, scale)
        s2 = extend(x, values, s2, 128, scale)
    row = head * tl.num_programs(1) + span
    store_state(states, s0, row, n, N, 0)
    store_state(states, s1, row, n, N, 64)
    store_state(states, s2, row, n, N, 128)


@triton.jit
def output_kernel(
    q, k, v, y, inverse, states, scale,
    H, T, d, N, SPAN, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t,
    SPANS: tl.constexpr, NORMALIZE: tl.constexpr, C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y of a head's span, for a tile of columns."""
    head, span = tl.program_id(0), tl.program_id(1)
    batch, place = (head // H).to(tl.int64), head % H
    q += batch * q_b + place * q_h
    k += batch * k_b + place * k_h
    v += batch * v_b + place * v_h
    y += batch * y_b + place * y_h
    inverse += head.to(tl.int64) * T
    i, e, n = tl.arange(0, C), tl.arange(0, D), tl.program_id(2) * BN + tl.arange(0, BN)
    s0, s1, s2 = tl.zeros((BF, BN), tl.float32), tl.zeros((BF, BN), tl.float32), tl.zeros((BF, BN), tl.float32)
    if SPANS:
        begin = head * tl.num_programs(1)
        s0 = first_state(states, begin, begin + span, n, N, 0, BN)
        s1 = first_state(states, begin, begin + span, n, N, 64, BN)
        s2 = first_state(states, begin, begin + span, n, N, 128, BN)
    chunks = tl.cdiv(tl.minimum((span + 1) * SPAN, T) - span * SPAN, C)
    for step in range(0, chunks):
        t = span * SPAN + step * C + i
        own = tl.load(q + t[:, None] * q_t + e[None, :], mask=(t < T)[:, None] & (e < d)[None, :], other=0.0)
        keys = tl.load(k + t[None, :] * k_t + e[:, None], mask=(t < T)[None, :] & (e < d)[:, None], other=0.0)
        values = tl.load(v + t[:, None] * v_t + n[None, :], mask=(t < T)[:, None] & (n < N)[None, :], other=0.0)
        x = tl.dot(own, keys) * scale  # (C, C)
        w = tl.where(i[:, None] >= i[None, :], 1 + x + 0.5 * x * x, 0.0)
        acc = scaled_product(w, values, "ieee")
        acc = read(own, s0, acc, 0, scale, values.dtype)
        acc = read(own, s1, acc, 64, scale, values.dtype)
        acc = read(own, s2, acc, 128, scale, values.dtype)
        if NORMALIZE:
            acc *= tl.load(inverse + t, mask=t < T, other=0.0)[:, None]
        out = y + t[:, None] * y_t + n[None, :]
        tl.store(out, acc.to(y.dtype.element_ty), mask=(t < T)[:, None] & (n < N)[None, :])
        # tokens beyond T come in the last chunk alone, whose state nobody reads
        s0 = extend(keys, values, s0, 0, scale)
        s1 = extend(keys, values, s1, 64, scale)
        s2 = extend(keys, values, s2, 128, scale)


def fits(q: torch.Tensor) -> bool:
    """Whether these kernels take over from those of `sums.py`."""
    return q.dtype != torch.float32 and q.shape[3] <= 16 and q.shape[2] > LEAST


def spans(q: torch.Tensor, tiles: int, chunk: int) -> tuple[int, int]:
    """How many spans, of how many tokens."""
    chunks = triton.cdiv(q.shape[2], chunk)
    each = triton.cdiv(chunks, max(1, min(chunks // 8, PROGRAMS // (q.shape[0] * q.shape[1] * tiles))))
    return triton.cdiv(chunks, each), each * chunk


def forward(q, k, v, y, inverse, normalize: bool, eps: float) -> None:
    batch, heads, length, d = q.shape
    width = v.shape[3]
    widest = 32 if q.dtype == torch.float16 else 64  # fp16 scales rows, of weights and of features: wider, it spills
    block = {"C": 64, "BN": bucket(width, 16, widest), "num_warps": 4, "num_stages": 1}  # with more, it spills
    tiles = triton.cdiv(width, block["BN"])
    count, span = spans(q, tiles, block["C"])
    sizes = (d**-0.5, heads, length, d)
    if normalize:
        weights_kernel[(batch * heads,)](q, k, inverse, eps, *sizes, *strides(q, k), C=64, num_warps=4, num_stages=3)
    states = k.new_empty((batch * heads, count, FEATURES.value, width) if count > 1 else 0, dtype=torch.float32)
    if count > 1:
        span_kernel[(batch * heads, count, tiles)](k, v, states, *sizes, width, span, *strides(k, v), **block)
    output_kernel[(batch * heads, count, tiles)](
        q, k, v, y, inverse, states, *sizes, width, span, *strides(q, k, v, y),
        SPANS=count > 1, NORMALIZE=normalize, **block,
    )  # fmt: skip
