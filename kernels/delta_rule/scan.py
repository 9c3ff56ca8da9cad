"""The forward kernels of the delta rule; triton.py says what they compute.

M by doubling: where x inverts the diagonal blocks of width b, x - x A' x inverts those of width 2 b, with A' the part
of A below the diagonal blocks within them. So M takes log2(C) pairs of products and, as block substitution does, never
forms powers of A, which grow to 1e18 where keys repeat. In fp32 whatever the type of the data.

Decays enter as sums of logarithms over the tokens between two, each formed by adding, never by subtracting: exponents
are at most 0, and a strong decay swallows no weak one.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.tiles import sequence

STRONGEST = tl.constexpr(-100.0)  # exp(-100) is 0 in fp32; keeps -inf out of sums that a mask multiplies
SOLVE = tl.constexpr("tf32x3")  # input_precision of the products that invert


@triton.jit
def rows(x, start, i, n, left, N, stride, TYPE: tl.constexpr):
    """Tokens start + i of x (., N) with i < left, in the type that products are taken in, zero outside."""
    mask = (i < left)[:, None] & (n < N)[None, :]
    return tl.load(x + start * stride + i[:, None] * stride + n[None, :], mask=mask, other=0.0).to(TYPE)


@triton.jit
def columns(x, start, i, n, left, N, stride, TYPE: tl.constexpr):
    """The same, transposed: (N, C)."""
    mask = (i < left)[None, :] & (n < N)[:, None]
    return tl.load(x + start * stride + i[None, :] * stride + n[:, None], mask=mask, other=0.0).to(TYPE)


@triton.jit
def put(x, value, start, i, n, left, N, stride):
    """Stores what `rows` loads."""
    mask = (i < left)[:, None] & (n < N)[None, :]
    tl.store(x + start * stride + i[:, None] * stride + n[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def gate(x, start, i, left):
    """x (T,) at tokens start + i with i < left, fp32, 0 outside."""
    return tl.load(x + start + i, mask=i < left, other=0.0).to(tl.float32)


@triton.jit
def logs(decay, start, i, left):
    return tl.maximum(gate(decay, start, i, left), STRONGEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def edges(decay, start, i, left, GATED: tl.constexpr, C: tl.constexpr):
    """Decays of a chunk: from its start to each token, from each token to its end, over all of it."""
    if GATED:
        g = logs(decay, start, i, left)
        later = logs(decay, start, i + 1, tl.minimum(left, C))
        return tl.exp(tl.cumsum(g, 0)), tl.exp(tl.cumsum(later, 0, reverse=True)), tl.exp(tl.sum(g, 0))
    else:
        ones = tl.full((C,), 1.0, tl.float32)
        return ones, ones, 1.0


@triton.jit
def invert(a, C: tl.constexpr):
    """(I + a)^-1 for a (C, C) strictly lower triangular. Blocks up to 16 side by side, (C / 16, 16, 16)."""
    N: tl.constexpr = C // 16
    block = tl.arange(0, N)
    across = block[:, None, None, None] == block[None, None, :, None]  # (N, 1, N, 1)
    small = tl.sum(tl.where(across, tl.reshape(a, (N, 16, N, 16)), 0.0), 2)  # (N, 16, 16)
    r = tl.arange(0, 16)[None, :, None]
    c = tl.arange(0, 16)[None, None, :]
    x = tl.where(r == c, 1.0, 0.0) - tl.where(r // 2 == c // 2, small, 0.0)
    for level in tl.static_range(1, 4):
        corner = tl.where((r >> (level + 1) == c >> (level + 1)) & (r >> level != c >> level), small, 0.0)
        x -= tl.dot(tl.dot(x, corner, input_precision=SOLVE), x, input_precision=SOLVE)
    whole = tl.reshape(tl.where(across, x[:, :, None, :], 0.0), (C, C))
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    for level in tl.static_range(4, 7):
        if 1 << level < C:
            corner = tl.where((i >> (level + 1) == j >> (level + 1)) & (i >> level != j >> level), a, 0.0)
            whole -= tl.dot(tl.dot(whole, corner, input_precision=SOLVE), whole, input_precision=SOLVE)
    return whole


@triton.jit
def chunk_kernel(
    q, k, beta, decay, solve, scores,
    T, K, q_b, q_h, q_t, k_b, k_h, k_t,
    GATED: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """solve = M and scores = P, (B H, chunks, C, C)."""
    head = sequence()
    batch, place = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    q += batch * q_b + place * q_h
    k += batch * k_b + place * k_h
    i = tl.arange(0, C)
    start = tl.program_id(0).to(tl.int64) * C
    left = T - tl.program_id(0) * C
    kk = tl.zeros((C, C), tl.float32)
    qk = tl.zeros((C, C), tl.float32)
    for begin in range(0, K, BK):
        n = begin + tl.arange(0, BK)
        keys = rows(k, start, i, n, left, K, k_t, TYPE)
        turned = columns(k, start, i, n, left, K, k_t, TYPE)
        kk += tl.dot(keys, turned, input_precision=PRECISION)
        qk += tl.dot(rows(q, start, i, n, left, K, q_t, TYPE), turned, input_precision=PRECISION)
    if GATED:
        g = logs(decay + head * T, start, i, left)
        weights = tl.exp(tl.cumsum(tl.where(i[:, None] > i[None, :], g[:, None], 0.0), 0))
        kk *= weights
        qk *= weights
    b = gate(beta + head * T, start, i, left)
    x = invert(tl.where(i[:, None] > i[None, :], b[:, None] * kk, 0.0), C)
    at = (head * tl.num_programs(0) + tl.program_id(0)) * C * C + i[:, None] * C + i[None, :]
    tl.store(solve + at, x.to(TYPE))
    tl.store(scores + at, tl.where(i[:, None] >= i[None, :], qk, 0.0).to(TYPE))


@triton.jit
def scan_kernel(
    q, k, v, beta, decay, solve, scores, first, y, last, states, u, begun,
    T, K, V, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t,
    GATED: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr, TYPE: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """y and the last state; or with KEEP the state before each chunk (B H, chunks, K, V) and u (B H, T, V)."""
    head = sequence()
    batch, place = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    q += batch * q_b + place * q_h
    k += batch * k_b + place * k_h
    v += batch * v_b + place * v_h
    y += batch * y_b + place * y_h
    u += head * T * V
    beta += head * T
    decay += head * T
    i = tl.arange(0, C)
    kk = tl.arange(0, BK)
    n = tl.program_id(0) * BV + tl.arange(0, BV)
    at = kk[:, None] * V + n[None, :]
    live = (kk < K)[:, None] & (n < V)[None, :]
    state = tl.zeros((BK, BV), tl.float32)
    if begun:
        state = tl.load(first + head * K * V + at, mask=live, other=0.0).to(tl.float32)
    chunks = tl.cdiv(T, C)
    for c in range(0, chunks):
        chunk = head * chunks + c
        start = tl.cast(c, tl.int64) * C
        left = T - c * C
        square = chunk * C * C + i[:, None] * C + i[None, :]
        since, until, through = edges(decay, start, i, left, GATED, C)
        b = gate(beta, start, i, left)
        keys = rows(k, start, i, kk, left, K, k_t, TYPE)  # (C, BK)
        values = rows(v, start, i, n, left, V, v_t, tl.float32)  # (C, BV)
        read = state.to(TYPE)
        rest = b[:, None] * (values - since[:, None] * tl.dot(keys, read, input_precision=PRECISION))
        added = tl.dot(tl.load(solve + square), rest.to(TYPE), input_precision=PRECISION)
        if KEEP:
            tl.store(states + chunk * K * V + at, state, mask=live)
            put(u, added, start, i, n, left, V, V)
        else:
            out = since[:, None] * tl.dot(rows(q, start, i, kk, left, K, q_t, TYPE), read, input_precision=PRECISION)
            out += tl.dot(tl.load(scores + square), added.to(TYPE), input_precision=PRECISION)
            put(y, out, start, i, n, left, V, y_t)
        added *= until[:, None]
        turned = columns(k, start, i, kk, left, K, k_t, TYPE)
        state = through * state + tl.dot(turned, added.to(TYPE), input_precision=PRECISION)
    if not KEEP:
        tl.store(last + head * K * V + at, state, mask=live)
