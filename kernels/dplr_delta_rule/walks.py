"""The four walks of the rule over the tokens, forward and back; triton.py says what they compute and why so.

A program is one warp. It holds a tile of a head's state in registers and meets one token after the other. Lanes lie
along the tile's second axis, L wide; what is summed over is its first, R long, so a sum is taken within a thread, or
between the few lanes that share a column, and no barrier stands in the way. The next token is loaded while one is
computed: what a walk costs is what it waits for.

x0 is a vector of the token that is computed, x1 of the one after it in the walk, zero where there is none.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl

from kernels.tiles import LOG2E, sequence


@triton.jit
def keyed(q, k, a, b, decay, at, live):
    """What is as wide as the keys: q, k, a, b, and the factors exp(decay)."""
    factor = tl.exp2(tl.load(decay + at, mask=live, other=0.0).to(tl.float32) * LOG2E)
    return (
        tl.load(q + at, mask=live, other=0.0).to(tl.float32), tl.load(k + at, mask=live, other=0.0).to(tl.float32),
        tl.load(a + at, mask=live, other=0.0).to(tl.float32), tl.load(b + at, mask=live, other=0.0).to(tl.float32),
        factor,
    )  # fmt: skip


@triton.jit
def valued(v, u, dy, du, at, live):
    """What is as wide as the values: v, u, dy, du."""
    return (
        tl.load(v + at, mask=live, other=0.0).to(tl.float32), tl.load(u + at, mask=live, other=0.0),
        tl.load(dy + at, mask=live, other=0.0).to(tl.float32), tl.load(du + at, mask=live, other=0.0),
    )  # fmt: skip


@triton.jit
def begin(stride_b, stride_h):
    """Where this program's sequence begins in a tensor of such strides."""
    return tl.program_id(2).to(tl.int64) * stride_b + tl.program_id(1).to(tl.int64) * stride_h


@triton.jit
def forward_kernel(
    q, k, v, a, b, decay, first, y, u, last,
    T, K, V, k_b, k_h, k_t, v_b, v_h, v_t,
    FIRST: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """y, u, and the last state: onwards, tiles (d, block of dv)."""
    i = tl.arange(0, R)
    j = tl.program_id(0) * L + tl.arange(0, L)
    key, value = begin(k_b, k_h) + i, begin(v_b, v_h) + j
    tile = sequence() * K * V + i[:, None] * V + j[None, :]
    live = (i < K)[:, None] & (j < V)[None, :]
    state = tl.zeros((R, L), tl.float32)
    if FIRST:
        state += tl.load(first + tile, mask=live, other=0.0).to(tl.float32)
    q0, k0, a0, b0, w0 = keyed(q, k, a, b, decay, key, i < K)
    v0 = tl.load(v + value, mask=j < V, other=0.0).to(tl.float32)
    for t in range(0, T):
        key += k_t
        q1, k1, a1, b1, w1 = keyed(q, k, a, b, decay, key, (i < K) & (i * 0 + t < T - 1))
        v1 = tl.load(v + value + v_t, mask=(j < V) & (j * 0 + t < T - 1), other=0.0).to(tl.float32)
        u0 = tl.sum(a0[:, None] * state, 0)
        state = w0[:, None] * state + b0[:, None] * u0[None, :] + k0[:, None] * v0[None, :]
        tl.store(u + value, u0, mask=j < V)
        tl.store(y + value, tl.sum(q0[:, None] * state, 0).to(y.dtype.element_ty), mask=j < V)
        value += v_t
        q0, k0, a0, b0, w0, v0 = q1, k1, a1, b1, w1, v1
    tl.store(last + tile, state, mask=live)


@triton.jit
def reverse_kernel(
    q, k, a, b, decay, dy, dlast, dv, du, dfirst,
    T, K, V, k_b, k_h, k_t, v_b, v_h, v_t,
    R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """dv, du, and the first state's gradient: backwards, tiles (d, block of dv)."""
    i = tl.arange(0, R)
    j = tl.program_id(0) * L + tl.arange(0, L)
    end = tl.cast(T - 1, tl.int64)
    key, value = begin(k_b, k_h) + end * k_t + i, begin(v_b, v_h) + end * v_t + j
    tile = sequence() * K * V + i[:, None] * V + j[None, :]
    live = (i < K)[:, None] & (j < V)[None, :]
    slope = tl.load(dlast + tile, mask=live, other=0.0)
    q0, k0, a0, b0, w0 = keyed(q, k, a, b, decay, key, i < K)
    dy0 = tl.load(dy + value, mask=j < V, other=0.0).to(tl.float32)
    for t in range(0, T):
        key -= k_t
        q1, k1, a1, b1, w1 = keyed(q, k, a, b, decay, key, (i < K) & (i * 0 + t < T - 1))
        dy1 = tl.load(dy + value - v_t, mask=(j < V) & (j * 0 + t < T - 1), other=0.0).to(tl.float32)
        slope += q0[:, None] * dy0[None, :]
        du0 = tl.sum(b0[:, None] * slope, 0)
        tl.store(du + value, du0, mask=j < V)
        tl.store(dv + value, tl.sum(k0[:, None] * slope, 0).to(dv.dtype.element_ty), mask=j < V)
        slope = w0[:, None] * slope + a0[:, None] * du0[None, :]
        value -= v_t
        q0, k0, a0, b0, w0, dy0 = q1, k1, a1, b1, w1, dy1
    tl.store(dfirst + tile, slope, mask=live)


@triton.jit
def query_kernel(
    q, k, v, a, b, decay, first, u, dy, du, dq, da, from_reads,
    T, K, V, k_b, k_h, k_t, v_b, v_h, v_t,
    FIRST: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """dq, da, and from_reads[t] = q[t] dq[t] + a[t+1] da[t+1]: onwards, tiles (dv, block of d), as first is laid."""
    i = tl.arange(0, R)
    j = tl.program_id(0) * L + tl.arange(0, L)
    key, value = begin(k_b, k_h) + j, begin(v_b, v_h) + i
    state = tl.zeros((R, L), tl.float32)
    if FIRST:
        tile = sequence() * K * V + i[:, None] * K + j[None, :]
        state += tl.load(first + tile, mask=(i < V)[:, None] & (j < K)[None, :], other=0.0).to(tl.float32)
    q0, k0, a0, b0, w0 = keyed(q, k, a, b, decay, key, j < K)
    v0, u0, dy0, du0 = valued(v, u, dy, du, value, i < V)
    da0 = tl.sum(du0[:, None] * state, 0)
    for t in range(0, T):
        value += v_t
        q1, k1, a1, b1, w1 = keyed(q, k, a, b, decay, key + k_t, (j < K) & (j * 0 + t < T - 1))
        v1, u1, dy1, du1 = valued(v, u, dy, du, value, (i < V) & (i * 0 + t < T - 1))
        tl.store(da + key, da0.to(da.dtype.element_ty), mask=j < K)
        state = w0[None, :] * state + b0[None, :] * u0[:, None] + k0[None, :] * v0[:, None]
        dq0 = tl.sum(dy0[:, None] * state, 0)
        da0 = tl.sum(du1[:, None] * state, 0)
        tl.store(dq + key, dq0.to(dq.dtype.element_ty), mask=j < K)
        tl.store(from_reads + key, q0 * dq0 + a1 * da0, mask=j < K)
        key += k_t
        q0, k0, b0, w0, v0, u0, dy0 = q1, k1, b1, w1, v1, u1, dy1


@triton.jit
def key_kernel(
    q, k, v, a, b, decay, u, dy, du, dlast, held, from_reads, dk, db, ddecay,
    T, K, V, k_b, k_h, k_t, v_b, v_h, v_t,
    R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """dk, db and ddecay: backwards, tiles (dv, block of d), as dlast is laid; held: (B H, d), h at the end."""
    i = tl.arange(0, R)
    j = tl.program_id(0) * L + tl.arange(0, L)
    end = tl.cast(T - 1, tl.int64)
    key, value = begin(k_b, k_h) + end * k_t + j, begin(v_b, v_h) + end * v_t + i
    tile = sequence() * K * V + i[:, None] * K + j[None, :]
    slope = tl.load(dlast + tile, mask=(i < V)[:, None] & (j < K)[None, :], other=0.0)
    h = tl.load(held + sequence() * K + j, mask=j < K, other=0.0)
    q0, k0, a0, b0, w0 = keyed(q, k, a, b, decay, key, j < K)
    r0 = tl.load(from_reads + key, mask=j < K, other=0.0)
    v0, u0, dy0, du0 = valued(v, u, dy, du, value, i < V)
    for t in range(0, T):
        value -= v_t
        q1, k1, a1, b1, w1 = keyed(q, k, a, b, decay, key - k_t, (j < K) & (j * 0 + t < T - 1))
        r1 = tl.load(from_reads + key - k_t, mask=(j < K) & (j * 0 + t < T - 1), other=0.0)
        v1, u1, dy1, du1 = valued(v, u, dy, du, value, (i < V) & (i * 0 + t < T - 1))
        slope += q0[None, :] * dy0[:, None]
        dk0, db0 = tl.sum(v0[:, None] * slope, 0), tl.sum(u0[:, None] * slope, 0)
        h += r0 - k0 * dk0 - b0 * db0
        tl.store(dk + key, dk0.to(dk.dtype.element_ty), mask=j < K)
        tl.store(db + key, db0.to(db.dtype.element_ty), mask=j < K)
        tl.store(ddecay + key, h, mask=j < K)
        slope = w0[None, :] * slope + a0[None, :] * du0[:, None]
        key -= k_t
        q0, k0, a0, b0, w0, r0, v0, u0, dy0, du0 = q1, k1, a1, b1, w1, r1, v1, u1, dy1, du1
