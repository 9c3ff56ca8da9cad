"""Taylor attention forward in half precision, d up to 16: a program walks over the tokens of a head in chunks.

Tokens of a chunk meet as pairs; those before it through a state, 160 features by a tile of values, that stays within
the program: every tensor is read once and written once. Where there are fewer heads than the GPU has room for, the
sequence is cut into spans: a first pass writes what each adds, and a program starts from the sum of those before it.
The sums of the weights, quadratic forms of the queries, come from a kernel of their own: in one with the outputs,
registers run short, and ptxas 12.8 makes code that reads outside its shared memory. The features: `features.py`.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl

from kernels.linear_attention.sums import strides
from kernels.taylor_attention.features import (
    BF,
    FEATURES,
    LAST,
    D,
    add_product,
    add_read,
    choices,
    columns,
    extend,
    extend_last,
    first_state,
    firsts,
    rounded,
    store_state,
    weighted_firsts,
)  # fmt: skip
from kernels.tiles import bucket

PROGRAMS = 264  # two for each SM of an H100: with fewer, sequences are cut
LEAST = 512  # tokens: up to them pairs alone are as fast


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
        form = add_read(
            wide, rounded(squares * (0.5 * scale), own.dtype), singles[None, :] + tl.zeros((C, D), tl.float32)
        )
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
    s0, s1 = tl.zeros((BF, BN), tl.float32), tl.zeros((BF, BN), tl.float32)
    s2 = tl.zeros((BN, LAST), tl.float32)
    for low in range(span * SPAN, tl.minimum((span + 1) * SPAN, T), C):
        t = low + i
        x = tl.load(k + t[None, :] * k_t + e[:, None], mask=(t < T)[None, :] & (e < d)[:, None], other=0.0)
        values = tl.load(v + t[:, None] * v_t + n[None, :], mask=(t < T)[:, None] & (n < N)[None, :], other=0.0)
        one = weighted_firsts(x, scale, 1.0, False)
        s0, s1 = extend(x, values, one, s0, 0), extend(x, values, one, s1, 64)
        s2 = extend_last(x, values, s2, scale, 1.0, False)
    store_state(states, s0, s1, s2, head * tl.num_programs(1) + span, n, N)


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
    s0, s1 = tl.zeros((BF, BN), tl.float32), tl.zeros((BF, BN), tl.float32)
    s2 = tl.zeros((BN, LAST), tl.float32)
    if SPANS:
        begin = head * tl.num_programs(1)
        s0, s1, s2 = first_state(states, begin, begin + span, n, N, BN)
    chunks = tl.cdiv(tl.minimum((span + 1) * SPAN, T) - span * SPAN, C)
    for step in range(0, chunks):
        t = span * SPAN + step * C + i
        own = tl.load(q + t[:, None] * q_t + e[None, :], mask=(t < T)[:, None] & (e < d)[None, :], other=0.0)
        keys = tl.load(k + t[None, :] * k_t + e[:, None], mask=(t < T)[None, :] & (e < d)[:, None], other=0.0)
        values = tl.load(v + t[:, None] * v_t + n[None, :], mask=(t < T)[:, None] & (n < N)[None, :], other=0.0)
        x = tl.dot(own, keys) * scale  # (C, C)
        w = tl.where(i[:, None] >= i[None, :], 1 + x + 0.5 * x * x, 0.0)
        acc = add_product(w, values, tl.zeros((C, BN), tl.float32))
        first = tl.dot(own, firsts(BF, own.dtype))
        one, two = columns(own, first, choices(0, own.dtype), 0)
        acc = add_read(one * two, rounded(s0, own.dtype), acc)
        one, two = columns(own, first, choices(64, own.dtype), 64)
        acc = add_read(one * two, rounded(s1, own.dtype), acc)
        one, two = columns(own, first, choices(128, own.dtype), 128)
        acc = add_read(one * two, rounded(tl.trans(s2), own.dtype), acc)
        if NORMALIZE:
            acc *= tl.load(inverse + t, mask=t < T, other=0.0)[:, None]
        out = y + t[:, None] * y_t + n[None, :]
        tl.store(out, acc.to(y.dtype.element_ty), mask=(t < T)[:, None] & (n < N)[None, :])
        # tokens beyond T come in the last chunk alone, whose state nobody reads
        one = weighted_firsts(keys, scale, 1.0, False)
        s0, s1 = extend(keys, values, one, s0, 0), extend(keys, values, one, s1, 64)
        s2 = extend_last(keys, values, s2, scale, 1.0, False)


def fits(q: torch.Tensor) -> bool:
    """Whether these kernels take over from those of `sums.py`."""
    return q.dtype != torch.float32 and q.shape[3] <= 16 and q.shape[2] > LEAST


def spans(q: torch.Tensor, tiles: int, chunk: int) -> tuple[int, int]:
    """How many spans, of how many tokens."""
    chunks = triton.cdiv(q.shape[2], chunk)
    each = triton.cdiv(chunks, max(1, min(chunks // 8, PROGRAMS // (q.shape[0] * q.shape[1] * tiles))))
    return triton.cdiv(chunks, each), each * chunk


def blocks(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Tokens, columns, warps and stages of a program; with more of any it spills."""
    widest = 32 if dtype == torch.float16 else 64  # fp16 scales rows, of weights and of features
    return {"C": 64, "BN": bucket(width, 16, widest), "num_warps": 4, "num_stages": 1}


def forward(q, k, v, y, inverse, normalize: bool, eps: float) -> None:
    batch, heads, length, d = q.shape
    width = v.shape[3]
    block = blocks(width, q.dtype)
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
