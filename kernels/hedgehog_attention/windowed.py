"""Attention over Hedgehog's features in memory, with a window or among all pairs, block of keys by block of keys.

No weight reaches memory. With a window, keys that are older than the windows of a whole block of queries enter through
the state, sum phi_k^T v, that linear attention's scan leaves for each chunk of 64 tokens; the blocks between it and the
diagonal, window / 64 + 2 of them at most, pair by pair: the exponential inside the window, the product of features
outside. A first pass over the window finds each row's largest exponent. Backward forms the weights again, in one kernel
a block of queries and one a block of keys; queries whose windows are past a whole block of keys enter by their state,
sum phi_q^T dy / (eps + sum of weights). Without a window all pairs of blocks meet.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.linear_attention.sums import scaled_product, scaled_right_product, scan, sum_gradient
from kernels.tiles import bucket, grid, load_rows, precision, sequence, store_rows


@triton.jit
def _near(m, n, window):
    return (n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window)


@triton.jit
def _weights(query, key, phi_q, phi_k, m, n, T, window, highest, scale, a, b,
             WINDOW: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Of queries m for keys n: the weights, the exponentials (zero outside the window), the products of features."""
    causal = (n[None, :] <= m[:, None]) & (m[:, None] < T)
    lin = tl.where(causal, tl.dot(phi_q, tl.trans(phi_k), input_precision=PRECISION), 0.0)
    near = tl.zeros_like(lin)
    weight = lin
    if WINDOW:
        inside = _near(m, n, window) & causal
        s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        near = tl.exp(tl.where(inside, s - highest[:, None], float("-inf")))
        lin = tl.where(inside, 0.0, lin)
        weight = a * near + b * lin
    return weight, near, lin


@triton.jit
def _add_product(p, x, acc, PRECISION: tl.constexpr):
    """acc + p @ x, p rounded."""
    if x.dtype == tl.float16:
        return acc + scaled_product(p, x, PRECISION)
    else:
        return tl.dot(p.to(x.dtype), x, acc, input_precision=PRECISION)


@triton.jit
def _state(states, head, chunk, chunks, row, column, f, dv):
    """A tile of the state that a chunk finds."""
    place = states + ((head * chunks + chunk) * f + row[:, None]) * dv + column[None, :]
    return tl.load(place, mask=(row < f)[:, None] & (column < dv)[None, :], other=0.0)


@triton.jit
def _from_features(phi, states, head, m, chunk, chunks, T, f, dv, DV: tl.constexpr, BM: tl.constexpr,
                   BK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """phi @ state (BM, DV), some features at a time."""
    acc = tl.zeros((BM, DV), tl.float32)
    for low in range(0, f, BK):
        kk = low + tl.arange(0, BK)
        x = tl.load(
            phi + (head * T + m[:, None]) * f + kk[None, :], mask=(m < T)[:, None] & (kk < f)[None, :], other=0.0
        )
        acc += scaled_right_product(x, _state(states, head, chunk, chunks, kk, tl.arange(0, DV), f, dv), PRECISION)
    return acc


@triton.jit
def _from_values(x, states, head, m, chunk, chunks, T, f, dv, F: tl.constexpr, BM: tl.constexpr,
                 BK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """x @ state^T (BM, F), x (B H, T, dv), some columns at a time."""
    acc = tl.zeros((BM, F), tl.float32)
    for low in range(0, dv, BK):
        n = low + tl.arange(0, BK)
        rows = tl.load(
            x + (head * T + m[:, None]) * dv + n[None, :], mask=(m < T)[:, None] & (n < dv)[None, :], other=0.0
        )
        acc += scaled_right_product(
            rows, tl.trans(_state(states, head, chunk, chunks, tl.arange(0, F), n, f, dv)), PRECISION
        )
    return acc


@triton.jit
def _beside(beside, head, chunk, chunks, f, F: tl.constexpr):
    j = tl.arange(0, F)
    return tl.load(beside + (head * chunks + chunk) * f + j, mask=j < f, other=0.0)


@triton.jit
def forward_kernel(
    q, k, v, phi_q, phi_k, mix, states, beside, y, inverse, highest, H, T, window, scale, eps, d, dv, f,
    WINDOW: tl.constexpr, STATES: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    F: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = sequence()
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    map_q = load_rows(phi_q + head * T * f, m, T, f, f, F)
    query = map_q
    top = tl.zeros((BM,), tl.float32)
    a = 1.0
    b = 1.0
    if WINDOW:
        query = load_rows(q + head * T * d, m, T, d, d, D)
        a = tl.load(mix + tl.program_id(1))
        b = tl.load(mix + H + tl.program_id(1))
        top = tl.full((BM,), float("-inf"), tl.float32)
        for block in range(tl.maximum(start - window + 1, 0) // BN * BN, tl.minimum(start + BM, T), BN):
            n = block + tl.arange(0, BN)
            s = tl.dot(query, tl.trans(load_rows(k + head * T * d, n, T, d, d, D)), input_precision=PRECISION) * scale
            top = tl.maximum(top, tl.max(tl.where(_near(m, n, window), s, float("-inf")), 1))
        top = tl.where(m < T, top, 0.0)
        tl.store(highest + head * T + m, top, mask=m < T)
    sums = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, DV), tl.float32)
    first = 0
    if STATES:  # of the chunk where the windows begin
        first = tl.maximum(start - window + 1, 0) // C * C
        acc = b * _from_features(phi_q, states, head, m, first // C, tl.cdiv(T, C), T, f, dv, DV, BM, BK, PRECISION)
        if NORMALIZE:
            sums = b * tl.sum(map_q * _beside(beside, head, first // C, tl.cdiv(T, C), f, F)[None, :], 1)
    for block in range(first, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        map_k = load_rows(phi_k + head * T * f, n, T, f, f, F)
        key = map_k
        if WINDOW:
            key = load_rows(k + head * T * d, n, T, d, d, D)
        weight, _, _ = _weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        value = load_rows(v + head * T * dv, n, T, dv, dv, DV)
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
        sums += tl.sum(weight, 1)
    if NORMALIZE:
        r = 1 / (sums + tl.where(m < T, eps, 1.0))
        tl.store(inverse + head * T + m, r, mask=m < T)
        acc *= r[:, None]
    store_rows(y + head * T * dv, m, T, dv, dv, acc)


@triton.jit
def queries_kernel(
    q, k, v, phi_q, phi_k, mix, states, beside, dy, inverse, highest, delta, dq, d_phi, d_mix,
    H, T, window, scale, d, dv, f,
    WINDOW: tl.constexpr, STATES: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    F: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of their features, and its part of the mix's (blocks, 2)."""
    head = sequence()
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    map_q = load_rows(phi_q + head * T * f, m, T, f, f, F)
    gradient = load_rows(dy + head * T * dv, m, T, dv, dv, DV)
    less = tl.zeros((BM,), tl.float32)
    r = tl.full((BM,), 1.0, tl.float32)
    if NORMALIZE:
        less = tl.load(delta + head * T + m, mask=m < T, other=0.0)
        r = tl.load(inverse + head * T + m, mask=m < T, other=0.0)
    query = map_q
    top = tl.zeros((BM,), tl.float32)
    a = 1.0
    b = 1.0
    if WINDOW:
        query = load_rows(q + head * T * d, m, T, d, d, D)
        top = tl.load(highest + head * T + m, mask=m < T, other=0.0)
        a = tl.load(mix + tl.program_id(1))
        b = tl.load(mix + H + tl.program_id(1))
    acc_q = tl.zeros((BM, D), tl.float32)
    acc_phi = tl.zeros((BM, F), tl.float32)
    sum_a = tl.zeros((BM,), tl.float32)
    sum_b = tl.zeros((BM,), tl.float32)
    first = 0
    if STATES:
        first = tl.maximum(start - window + 1, 0) // C * C
        acc_phi = _from_values(dy, states, head, m, first // C, tl.cdiv(T, C), T, f, dv, F, BM, BK, PRECISION)
        if NORMALIZE:
            acc_phi += less[:, None] * _beside(beside, head, first // C, tl.cdiv(T, C), f, F)[None, :]
        acc_phi *= r[:, None]
        sum_b = tl.sum(acc_phi * map_q, 1)
        acc_phi *= b
    for block in range(first, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        map_k = load_rows(phi_k + head * T * f, n, T, f, f, F)
        key = map_k
        if WINDOW:
            key = load_rows(k + head * T * d, n, T, d, d, D)
        _, near, lin = _weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        slope = tl.dot(gradient, tl.trans(load_rows(v + head * T * dv, n, T, dv, dv, DV)), input_precision=PRECISION)
        slope = (slope + less[:, None]) * r[:, None]
        far = (n[None, :] <= m[:, None]) & (m[:, None] < T)
        if WINDOW:
            far = far & ~_near(m, n, window)
            sum_a += tl.sum(slope * near, 1)
            sum_b += tl.sum(slope * lin, 1)
            acc_q = _add_product(slope * near * (a * scale), key, acc_q, PRECISION)
        acc_phi = _add_product(tl.where(far, slope * b, 0.0), map_k, acc_phi, PRECISION)
    store_rows(d_phi + head * T * f, m, T, f, f, acc_phi)
    if WINDOW:
        store_rows(dq + head * T * d, m, T, d, d, acc_q)
        place = d_mix + (head * tl.num_programs(0) + tl.program_id(0)) * 2
        tl.store(place, tl.sum(tl.where(m < T, sum_a, 0.0), 0))
        tl.store(place + 1, tl.sum(tl.where(m < T, sum_b, 0.0), 0))


@triton.jit
def keys_kernel(
    q, k, v, phi_q, phi_k, mix, states, beside, dy, inverse, highest, delta, dk, dvalue, d_phi,
    H, T, window, scale, d, dv, f,
    WINDOW: tl.constexpr, STATES: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    F: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys, of their features and of their values."""
    head = sequence()
    start = tl.program_id(0) * BN
    n = start + tl.arange(0, BN)
    map_k = load_rows(phi_k + head * T * f, n, T, f, f, F)
    value = load_rows(v + head * T * dv, n, T, dv, dv, DV)
    key = map_k
    a = 1.0
    b = 1.0
    if WINDOW:
        key = load_rows(k + head * T * d, n, T, d, d, D)
        a = tl.load(mix + tl.program_id(1))
        b = tl.load(mix + H + tl.program_id(1))
    acc_k = tl.zeros((BN, D), tl.float32)
    acc_v = tl.zeros((BN, DV), tl.float32)
    acc_phi = tl.zeros((BN, F), tl.float32)
    end = T
    if STATES:  # queries from here on have all of these keys behind their windows
        edge = tl.cdiv(start + BN - 1 + window, C)
        end = tl.minimum(edge * C, T)
        last = tl.minimum(edge, tl.cdiv(T, C)) - 1
        acc_v = b * _from_features(phi_k, states, head, n, last, tl.cdiv(T, C), T, f, dv, DV, BN, BK, PRECISION)
        acc_phi = _from_values(v, states, head, n, last, tl.cdiv(T, C), T, f, dv, F, BN, BK, PRECISION)
        if NORMALIZE:
            acc_phi += _beside(beside, head, last, tl.cdiv(T, C), f, F)[None, :]
        acc_phi *= b
    for block in range(start, end, BM):
        m = block + tl.arange(0, BM)
        map_q = load_rows(phi_q + head * T * f, m, T, f, f, F)
        gradient = load_rows(dy + head * T * dv, m, T, dv, dv, DV)
        less = tl.zeros((BM,), tl.float32)
        r = tl.full((BM,), 1.0, tl.float32)
        if NORMALIZE:
            less = tl.load(delta + head * T + m, mask=m < T, other=0.0)
            r = tl.load(inverse + head * T + m, mask=m < T, other=0.0)
        query = map_q
        top = tl.zeros((BM,), tl.float32)
        if WINDOW:
            query = load_rows(q + head * T * d, m, T, d, d, D)
            top = tl.load(highest + head * T + m, mask=m < T, other=0.0)
        weight, near, _ = _weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        acc_v = _add_product(tl.trans(weight * r[:, None]), gradient, acc_v, PRECISION)
        slope = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
        slope = (slope + less[:, None]) * r[:, None]
        far = (n[None, :] <= m[:, None]) & (m[:, None] < T)
        if WINDOW:
            far = far & ~_near(m, n, window)
            acc_k = _add_product(tl.trans(slope * near * (a * scale)), query, acc_k, PRECISION)
        acc_phi = _add_product(tl.trans(tl.where(far, slope * b, 0.0)), map_q, acc_phi, PRECISION)
    store_rows(dvalue + head * T * dv, n, T, dv, dv, acc_v)
    store_rows(d_phi + head * T * f, n, T, f, f, acc_phi)
    if WINDOW:
        store_rows(dk + head * T * d, n, T, d, d, acc_k)


def tiling(q: torch.Tensor, v: torch.Tensor, phi: torch.Tensor, windowed: bool, backward: bool) -> dict:
    """Block sizes by widths: backward holds tiles of keys, features and values and their gradients at once."""
    widths = {"D": bucket(q.shape[3], 16, 256) if windowed else 16}
    widths |= {"DV": bucket(v.shape[3], 16, 256), "F": bucket(phi.shape[3], 16, 256)}
    total = sum(widths.values())
    if q.dtype == torch.float32:  # three TF32 products a product
        sizes = {"BM": 16, "BN": 16, "BK": 16, "num_warps": 4 if total <= 64 else 8, "num_stages": 1}
    else:
        block = (16 if total > 384 else 32) if backward else (32 if total > 384 else 64)
        sizes = {"BM": block, "BN": block, "BK": 32, "num_warps": 4 if total <= 192 else 8, "num_stages": 2}
    # left to itself the assembler aims at fewer registers and spills a few
    sizes |= {"C": bucket(q.shape[2], 16, 64), "maxnreg": 255, "PRECISION": precision(q.dtype)}
    return widths | sizes | {"WINDOW": windowed}


def states(a, b, inverse, delta, window: int, normalize: bool, reverse: bool):
    """What each chunk finds, (B H, chunks, 2 f, dv), and the vectors beside; None where no token is beyond a window."""
    beyond = 0 < window < a.shape[2]
    return scan(a, b, None, inverse, delta, None, None, normalize, reverse) if beyond else None


def forward(q, k, v, phi_q, phi_k, mix, y, inverse, highest, window: int, normalize: bool, eps: float) -> None:
    batch, heads, length, d = q.shape
    options = tiling(q, v, phi_q, window > 0, False)
    found = states(phi_k, v, inverse, inverse, window, normalize, False)
    forward_kernel[grid(triton.cdiv(length, options["BM"]), heads, batch)](
        q, k, v, phi_q, phi_k, mix, *(found or (y, y)), y, inverse, highest, heads, length, window, d**-0.5, eps, d,
        v.shape[3], phi_q.shape[3], STATES=found is not None, NORMALIZE=normalize, **options,
    )  # fmt: skip


def backward(q, k, v, phi_q, phi_k, mix, y, inverse, highest, dy, dq, dk, dv, d_phi_q, d_phi_k, window, normalize):
    """Writes the gradients but the mix's, which it returns, (2, H), fp32. dq and dk are left without a window."""
    batch, heads, length, d = q.shape
    delta = sum_gradient(dy, y, normalize)
    options = tiling(q, v, phi_q, window > 0, True) | {"NORMALIZE": normalize}
    blocks = triton.cdiv(length, options["BM"])
    d_mix = q.new_zeros(batch, heads, blocks, 2, dtype=torch.float32)
    given, beyond = (q, k, v, phi_q, phi_k, mix), (dy, inverse, highest, delta)
    sizes = (heads, length, window, d**-0.5, d, v.shape[3], phi_q.shape[3])
    programs = grid(blocks, heads, batch)
    found = states(phi_k, v, inverse, delta, window, normalize, False)
    options["STATES"] = found is not None
    queries_kernel[programs](*given, *(found or (y, y)), *beyond, dq, d_phi_q, d_mix, *sizes, **options)
    del found
    found = states(phi_q, dy, inverse, delta, window, normalize, True)
    keys_kernel[programs](*given, *(found or (y, y)), *beyond, dk, dv, d_phi_k, *sizes, **options)
    return d_mix.sum((0, 2)).t().contiguous()
