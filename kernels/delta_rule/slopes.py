"""The backward kernels of the delta rule; triton.py says what they compute.

With dz the gradient of beta (v - w_start K S), which M^T turns from that of u, that of A is -dz u^T below the diagonal.

The gradient of a log-decay at u is the sum of q.dq + k.dk - k.dk' over t >= u, where dk is that of k[t] as the later
token of a product and dk' as the earlier; a token's own product, which does not decay, is left out of both.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.delta_rule.scan import columns, edges, gate, logs, put, rows
from kernels.tiles import sequence


@triton.jit
def reverse_kernel(
    q, k, beta, decay, solve, scores, dy, dlast, dstates, dz, dfirst,
    T, K, V, q_b, q_h, q_t, k_b, k_h, k_t, dy_b, dy_h, dy_t,
    GATED: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """D, the gradient of the state after each chunk (B H, chunks, K, V), dz = M^T du (B H, T, V), and dfirst."""
    head = sequence()
    batch, place = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    q += batch * q_b + place * q_h
    k += batch * k_b + place * k_h
    dy += batch * dy_b + place * dy_h
    dz += head * T * V
    beta += head * T
    decay += head * T
    i = tl.arange(0, C)
    kk = tl.arange(0, BK)
    n = tl.program_id(0) * BV + tl.arange(0, BV)
    at = kk[:, None] * V + n[None, :]
    live = (kk < K)[:, None] & (n < V)[None, :]
    slope = tl.load(dlast + head * K * V + at, mask=live, other=0.0)
    chunks = tl.cdiv(T, C)
    for step in range(0, chunks):
        c = chunks - 1 - step
        chunk = head * chunks + c
        start = tl.cast(c, tl.int64) * C
        left = T - c * C
        square = chunk * C * C + i[None, :] * C + i[:, None]  # transposed
        since, until, through = edges(decay, start, i, left, GATED, C)
        b = gate(beta, start, i, left)
        tl.store(dstates + chunk * K * V + at, slope, mask=live)
        g = rows(dy, start, i, n, left, V, dy_t, TYPE)  # (C, BV)
        du = until[:, None] * tl.dot(
            rows(k, start, i, kk, left, K, k_t, TYPE), slope.to(TYPE), input_precision=PRECISION
        )
        du += tl.dot(tl.load(scores + square), g, input_precision=PRECISION)
        d = tl.dot(tl.load(solve + square), du.to(TYPE), input_precision=PRECISION)
        put(dz, d, start, i, n, left, V, V)
        slope *= through
        g = (g * since[:, None]).to(TYPE)
        slope += tl.dot(columns(q, start, i, kk, left, K, q_t, TYPE), g, input_precision=PRECISION)
        d = (d * (b * since)[:, None]).to(TYPE)
        slope -= tl.dot(columns(k, start, i, kk, left, K, k_t, TYPE), d, input_precision=PRECISION)
    tl.store(dfirst + head * K * V + at, slope, mask=live)


@triton.jit
def slope_kernel(
    q, k, v, beta, decay, dy, states, dstates, u, dz, dq, dk, dv, dbeta, ddecay,
    T, K, V, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, dy_b, dy_h, dy_t,
    dq_b, dq_h, dq_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t,
    GATED: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients within a chunk: first of the scores P and of A, over blocks of values; then over blocks of keys."""
    head = sequence()
    batch, place = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk = (head * tl.num_programs(0) + tl.program_id(0)) * K * V
    q += batch * q_b + place * q_h
    k += batch * k_b + place * k_h
    v += batch * v_b + place * v_h
    dy += batch * dy_b + place * dy_h
    dq += batch * dq_b + place * dq_h
    dk += batch * dk_b + place * dk_h
    dv += batch * dv_b + place * dv_h
    u += head * T * V
    dz += head * T * V
    decay += head * T
    i = tl.arange(0, C)
    start = tl.program_id(0).to(tl.int64) * C
    left = T - tl.program_id(0) * C
    since, until, through = edges(decay, start, i, left, GATED, C)
    b = gate(beta + head * T, start, i, left)

    dp = tl.zeros((C, C), tl.float32)  # [t, s]
    da = tl.zeros((C, C), tl.float32)
    dp_turned = tl.zeros((C, C), tl.float32)  # [s, t]: a second product, cheaper than turning the first
    da_turned = tl.zeros((C, C), tl.float32)
    db = tl.zeros((C,), tl.float32)
    for begin in range(0, V, BV):
        n = begin + tl.arange(0, BV)
        g = rows(dy, start, i, n, left, V, dy_t, TYPE)  # (C, BV)
        added = rows(u, start, i, n, left, V, V, TYPE)
        d = rows(dz, start, i, n, left, V, V, TYPE)
        values = rows(v, start, i, n, left, V, v_t, tl.float32)
        dp += tl.dot(g, columns(u, start, i, n, left, V, V, TYPE), input_precision=PRECISION)
        da -= tl.dot(d, columns(u, start, i, n, left, V, V, TYPE), input_precision=PRECISION)
        dp_turned += tl.dot(added, columns(dy, start, i, n, left, V, dy_t, TYPE), input_precision=PRECISION)
        da_turned -= tl.dot(added, columns(dz, start, i, n, left, V, V, TYPE), input_precision=PRECISION)
        db += tl.sum(d.to(tl.float32) * values, 1)
        put(dv, b[:, None] * d.to(tl.float32), start, i, n, left, V, dv_t)

    own = tl.sum(tl.where(i[:, None] == i[None, :], dp, 0.0), 1)  # of a token's product with itself
    if GATED:
        w = logs(decay, start, i, left)
        weights = tl.exp(tl.cumsum(tl.where(i[:, None] > i[None, :], w[:, None], 0.0), 0))
        dp *= weights
        da *= weights
        weights = tl.exp(tl.cumsum(tl.where(i[:, None] < i[None, :], w[None, :], 0.0), 1))
        dp_turned *= weights
        da_turned *= weights
    after = i[:, None] > i[None, :]
    before = i[:, None] < i[None, :]
    dp = tl.where(after, dp, 0.0).to(TYPE)
    da = tl.where(after, da, 0.0).to(TYPE)
    dp_turned = tl.where(before, dp_turned, 0.0).to(TYPE)
    da_turned = tl.where(before, da_turned * b[None, :], 0.0).to(TYPE)

    dg = tl.zeros((C,), tl.float32)  # of the running sum of log-decays, at each token
    end = 0.0  # and at the end of the chunk
    for begin in range(0, K, BK):
        kk = begin + tl.arange(0, BK)
        queries = rows(q, start, i, kk, left, K, q_t, TYPE)  # (C, BK)
        keys = rows(k, start, i, kk, left, K, k_t, TYPE)
        from_state = tl.zeros((C, BK), tl.float32)  # dy S^T
        read = tl.zeros((C, BK), tl.float32)  # dz S^T
        to_state = tl.zeros((C, BK), tl.float32)  # u D^T
        for low in range(0, V, BV):
            n = low + tl.arange(0, BV)
            at = chunk + kk[None, :] * V + n[:, None]  # (BV, BK)
            live = (kk < K)[None, :] & (n < V)[:, None]
            state = tl.load(states + at, mask=live, other=0.0)
            slope = tl.load(dstates + at, mask=live, other=0.0)
            g = rows(dy, start, i, n, left, V, dy_t, TYPE)
            from_state += tl.dot(g, state.to(TYPE), input_precision=PRECISION)
            d = rows(dz, start, i, n, left, V, V, TYPE)
            read += tl.dot(d, state.to(TYPE), input_precision=PRECISION)
            added = rows(u, start, i, n, left, V, V, TYPE)
            to_state += tl.dot(added, slope.to(TYPE), input_precision=PRECISION)
            if GATED:
                end += through * tl.sum(tl.sum(state * slope, 1), 0)
        wide_q = queries.to(tl.float32)
        wide_k = keys.to(tl.float32)

        later_q = since[:, None] * from_state + tl.dot(dp, keys, input_precision=PRECISION)
        put(dq, later_q + own[:, None] * wide_k, start, i, kk, left, K, dq_t)

        later_k = tl.dot(da, keys, input_precision=PRECISION) - since[:, None] * read
        db += tl.sum(later_k * wide_k, 1)
        later_k *= b[:, None]
        to_state *= until[:, None]
        earlier_k = tl.dot(dp_turned, queries, input_precision=PRECISION)
        earlier_k += tl.dot(da_turned, keys, input_precision=PRECISION)
        put(dk, later_k + earlier_k + to_state + own[:, None] * wide_q, start, i, kk, left, K, dk_t)
        if GATED:
            ended = tl.sum(to_state * wide_k, 1)
            dg += tl.sum(later_q * wide_q + (later_k - earlier_k) * wide_k, 1) - ended
            end += tl.sum(ended, 0)

    tl.store(dbeta + head * T + start + i, db, mask=i < left)
    if GATED:
        tl.store(ddecay + head * T + start + i, tl.cumsum(dg, 0, reverse=True) + end, mask=i < left)
