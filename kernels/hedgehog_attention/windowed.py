"""Attention over Hedgehog's features in memory, with a window or among all pairs, block of keys by block of keys.

No weight reaches memory. With a window, keys that are older than the windows of a whole block of queries enter through
a state (`states`); the blocks between it and the diagonal, window / 64 + 2 of them at most, pair by pair (`blocks`). A
first pass over the window finds each row's largest exponent. Backward forms the weights again, in one kernel a block of
queries and one a block of keys; queries whose windows are past a whole block of keys enter by their state. Without a
window all pairs of blocks meet.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.hedgehog_attention.blocks import both_rows, descending_rows, mixture, near, slopes, weights
from kernels.hedgehog_attention.states import beyond, from_features, from_values, load_beside
from kernels.linear_attention.sums import scaled_product, sum_gradient
from kernels.tiles import bucket, grid, load_rows, precision, sequence, store_rows


@triton.jit
def forward_kernel(
    q, k, v, phi_q, phi_k, mix, states, beside, y, inverse, highest, H, T, window, scale, eps, d, dv, f,
    WINDOW: tl.constexpr, STATES: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    F: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = sequence()
    row = head * T
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    map_q, query = both_rows(phi_q, q, row, m, T, f, d, WINDOW, F, D)
    a, b = mixture(mix, H, WINDOW)
    top = tl.zeros((BM,), tl.float32)
    if WINDOW:
        top = tl.full((BM,), float("-inf"), tl.float32)
        for block in range(tl.maximum(start - window + 1, 0) // BN * BN, tl.minimum(start + BM, T), BN):
            n = block + tl.arange(0, BN)
            s = tl.dot(query, tl.trans(load_rows(k + row * d, n, T, d, d, D)), input_precision=PRECISION) * scale
            top = tl.maximum(top, tl.max(tl.where(near(m, n, window), s, float("-inf")), 1))
        top = tl.where(m < T, top, 0.0)
        tl.store(highest + row + m, top, mask=m < T)
    sums = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, DV), tl.float32)
    first = 0
    if STATES:  # of the chunk where the windows begin
        first = tl.maximum(start - window + 1, 0) // C * C
        chunk = head * tl.cdiv(T, C) + first // C
        acc = b * from_features(phi_q + row * f, states + chunk * f * dv, m, T, f, dv, DV, BK, PRECISION)
        if NORMALIZE:
            sums = b * tl.sum(map_q * load_beside(beside + chunk * f, f, F), 1)
    for block in range(first, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        map_k, key = both_rows(phi_k, k, row, n, T, f, d, WINDOW, F, D)
        weight, _, _ = weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        value = load_rows(v + row * dv, n, T, dv, dv, DV)
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
        sums += tl.sum(weight, 1)
    if NORMALIZE:
        r = 1 / (sums + tl.where(m < T, eps, 1.0))
        tl.store(inverse + row + m, r, mask=m < T)
        acc *= r[:, None]
    store_rows(y + row * dv, m, T, dv, dv, acc)


@triton.jit
def queries_kernel(
    q, k, v, phi_q, phi_k, mix, states, beside, dy, inverse, highest, delta, dq, d_phi, d_mix,
    H, T, window, scale, d, dv, f,
    WINDOW: tl.constexpr, STATES: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    F: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of their features, and its part of the mix's (blocks, 2)."""
    head = sequence()
    row = head * T
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    map_q, query, gradient, less, r, top = descending_rows(
        phi_q, q, dy, delta, inverse, highest, row, m, T, f, d, dv, WINDOW, NORMALIZE, F, D, DV
    )
    a, b = mixture(mix, H, WINDOW)
    acc_q = tl.zeros((BM, D), tl.float32)
    acc_phi = tl.zeros((BM, F), tl.float32)
    sum_a = tl.zeros((BM,), tl.float32)
    sum_b = tl.zeros((BM,), tl.float32)
    first = 0
    if STATES:
        first = tl.maximum(start - window + 1, 0) // C * C
        chunk = head * tl.cdiv(T, C) + first // C
        acc_phi = from_values(dy + row * dv, states + chunk * f * dv, m, T, f, dv, F, BK, PRECISION)
        if NORMALIZE:
            acc_phi += less[:, None] * load_beside(beside + chunk * f, f, F)
        acc_phi *= r[:, None]
        sum_b = tl.sum(acc_phi * map_q, 1)
        acc_phi *= b
    for block in range(first, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        map_k, key = both_rows(phi_k, k, row, n, T, f, d, WINDOW, F, D)
        value = load_rows(v + row * dv, n, T, dv, dv, DV)
        _, exponential, product = weights(
            query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION
        )
        slope, d_product = slopes(gradient, value, less, r, m, n, T, window, b, WINDOW, PRECISION)
        if WINDOW:
            sum_a += tl.sum(slope * exponential, 1)
            sum_b += tl.sum(slope * product, 1)
            acc_q += scaled_product(slope * exponential * (a * scale), key, PRECISION)
        acc_phi += scaled_product(d_product, map_k, PRECISION)
    store_rows(d_phi + row * f, m, T, f, f, acc_phi)
    if WINDOW:
        store_rows(dq + row * d, m, T, d, d, acc_q)
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
    row = head * T
    start = tl.program_id(0) * BN
    n = start + tl.arange(0, BN)
    map_k, key = both_rows(phi_k, k, row, n, T, f, d, WINDOW, F, D)
    value = load_rows(v + row * dv, n, T, dv, dv, DV)
    a, b = mixture(mix, H, WINDOW)
    acc_k = tl.zeros((BN, D), tl.float32)
    acc_v = tl.zeros((BN, DV), tl.float32)
    acc_phi = tl.zeros((BN, F), tl.float32)
    end = T
    if STATES:  # queries from here on have all of these keys behind their windows
        edge = tl.cdiv(start + BN - 1 + window, C)
        end = tl.minimum(edge * C, T)
        chunk = head * tl.cdiv(T, C) + tl.minimum(edge, tl.cdiv(T, C)) - 1
        acc_v = b * from_features(phi_k + row * f, states + chunk * f * dv, n, T, f, dv, DV, BK, PRECISION)
        acc_phi = from_values(v + row * dv, states + chunk * f * dv, n, T, f, dv, F, BK, PRECISION)
        if NORMALIZE:
            acc_phi += load_beside(beside + chunk * f, f, F)
        acc_phi *= b
    for block in range(start, end, BM):
        m = block + tl.arange(0, BM)
        map_q, query, gradient, less, r, top = descending_rows(
            phi_q, q, dy, delta, inverse, highest, row, m, T, f, d, dv, WINDOW, NORMALIZE, F, D, DV
        )
        weight, exponential, _ = weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        acc_v += scaled_product(tl.trans(weight * r[:, None]), gradient, PRECISION)
        slope, d_product = slopes(gradient, value, less, r, m, n, T, window, b, WINDOW, PRECISION)
        if WINDOW:
            acc_k += scaled_product(tl.trans(slope * exponential * (a * scale)), query, PRECISION)
        acc_phi += scaled_product(tl.trans(d_product), map_q, PRECISION)
    store_rows(dvalue + row * dv, n, T, dv, dv, acc_v)
    store_rows(d_phi + row * f, n, T, f, f, acc_phi)
    if WINDOW:
        store_rows(dk + row * d, n, T, d, d, acc_k)


def tiling(q: torch.Tensor, v: torch.Tensor, phi: torch.Tensor, windowed: bool, backward: bool) -> dict:
    """Block sizes by widths: backward holds tiles of keys, features and values and their gradients at once."""
    widths = {"D": bucket(q.shape[3], 16, 256) if windowed else 16}
    widths |= {"DV": bucket(v.shape[3], 16, 256), "F": bucket(phi.shape[3], 16, 256)}
    total = sum(widths.values())
    if q.dtype == torch.float32:  # three TF32 products a product
        sizes = {"BM": 16, "BN": 16, "BK": 16, "num_warps": 4 if total <= 64 else 8, "num_stages": 1}
    else:
        uneven = q.dtype == torch.float16 and widths["DV"] > 2 * widths["F"]  # scales take registers of wide tiles
        block = (16 if total > 384 or uneven else 32) if backward else (32 if total > 384 else 64)
        sizes = {"BM": block, "BN": block, "BK": 32, "num_warps": 4 if total <= 192 else 8, "num_stages": 2}
    # left to itself the assembler aims at fewer registers and spills a few
    sizes |= {"C": bucket(q.shape[2], 16, 64), "maxnreg": 255, "PRECISION": precision(q.dtype)}
    return widths | sizes | {"WINDOW": windowed}


def forward(q, k, v, phi_q, phi_k, mix, y, inverse, highest, window: int, normalize: bool, eps: float) -> None:
    batch, heads, length, d = q.shape
    options = tiling(q, v, phi_q, window > 0, False)
    found = beyond(phi_k, v, inverse, inverse, window, normalize, False)
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
    given, backwards = (q, k, v, phi_q, phi_k, mix), (dy, inverse, highest, delta)
    sizes = (heads, length, window, d**-0.5, d, v.shape[3], phi_q.shape[3])
    programs = grid(blocks, heads, batch)
    found = beyond(phi_k, v, inverse, delta, window, normalize, False)
    options["STATES"] = found is not None
    queries_kernel[programs](*given, *(found or (y, y)), *backwards, dq, d_phi_q, d_mix, *sizes, **options)
    del found
    found = beyond(phi_q, dy, inverse, delta, window, normalize, True)
    keys_kernel[programs](*given, *(found or (y, y)), *backwards, dk, dv, d_phi_k, *sizes, **options)
    return d_mix.sum((0, 2)).t().contiguous()
