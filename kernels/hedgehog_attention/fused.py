"""Hedgehog without a window, narrow heads: a program walks over a sequence chunk by chunk, no feature in memory.

Each chunk's features come from its tiles of q and k, by `maps`, whose V is [W, -W]. Tokens of a chunk meet as pairs,
those before it through the state sum phi_k^T v. With r = 1 / (eps + sum of weights), m = -dy.y and
slope[t, s] = r[t] (dy[t].v[s] + m[t]):

    dphi_q[t] = sum_{s <= t} slope[t, s] phi_k[s]      chunk by chunk, by the forward pass's state, formed again
    dphi_k[s] = sum_{t >= s} slope[t, s] phi_q[t]      from the last chunk to the first, by the state sum r dy^T phi_q;
    dv[s] = sum_{t >= s} r[t] w[t, s] dy[t]            so is this

and from them dq, dk and dV, whose sums over a program's share of the batch are added afterwards, in order.

Features, at most 1, weights, slopes and the states, which add up in fp32, are rounded to the type of the data where
they enter a product. fp16's range is narrow: there, rows of slopes and weights, and other tiles as a whole, are first
scaled by their largest.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.hedgehog_attention.maps import mapped, signed, store_share, through_softmax
from kernels.linear_attention.sums import scaled_product, scaled_right_product, strides
from kernels.tiles import bucket, grid, load_rows, precision, sequence, store_rows, sum_shares

WARPS = 1056  # eight for each SM of an H100, as many as its registers hold
MANY, SHORT = 264, 512  # sequences that fill an H100; tokens that a program walks over in less time than launches take


@triton.jit
def forward_kernel(
    q, k, v, w_q, w_k, y, inverse, eps, T, d, dv, f,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t,
    NORMALIZE: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head = sequence()
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    q, k, v, y = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h, y + b * y_b + h * y_h
    type: tl.constexpr = q.dtype.element_ty
    map_q, map_k = signed(w_q, h, d, f, D, F, type), signed(w_k, h, d, f, D, F, type)
    i = tl.arange(0, C)
    state, z = tl.zeros((2 * F, DV), tl.float32), tl.zeros((2 * F,), tl.float32)
    for low in range(0, T, C):
        t = low + i
        phi_q = mapped(load_rows(q, t, T, q_t, d, D), map_q, f, F, WHOLE, PRECISION)
        phi_k = mapped(load_rows(k, t, T, k_t, d, D), map_k, f, F, WHOLE, PRECISION)
        value = load_rows(v, t, T, v_t, dv, DV)
        p = tl.dot(phi_q.to(type), tl.trans(phi_k.to(type)), input_precision=PRECISION)
        p = tl.where(t[:, None] >= t[None, :], p, 0.0)
        acc = scaled_right_product(phi_q.to(type), state, PRECISION)
        acc = tl.dot(p.to(type), value, acc, input_precision=PRECISION)
        if NORMALIZE:
            r = 1 / (tl.sum(p, 1) + tl.sum(phi_q * z[None, :], 1) + eps)
            tl.store(inverse + head * T + t, r, mask=t < T)
            acc *= r[:, None]
            z += tl.sum(phi_k, 0)
        store_rows(y, t, T, y_t, dv, acc)
        # tokens beyond T come in the last chunk alone, whose state nobody reads
        state = tl.dot(tl.trans(phi_k.to(type)), value, state, input_precision=PRECISION)


@triton.jit
def queries_kernel(
    q, k, v, w_q, w_k, y, dy, inverse, delta, dq, partial, B, H, T, d, dv, f,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, g_b, g_h, g_t, o_b, o_h, o_t,
    NORMALIZE: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, this share's dW of the queries, and where normalised delta = -dy.y."""
    h = tl.program_id(0).to(tl.int64)
    type: tl.constexpr = q.dtype.element_ty
    map_q, map_k = signed(w_q, h, d, f, D, F, type), signed(w_k, h, d, f, D, F, type)
    i = tl.arange(0, C)
    total = tl.zeros((D, 2 * F), tl.float32)
    for batch in range(tl.program_id(1), B, tl.num_programs(1)):
        b = tl.cast(batch, tl.int64)
        row = (b * H + h) * T
        state, z = tl.zeros((2 * F, DV), tl.float32), tl.zeros((2 * F,), tl.float32)
        for low in range(0, T, C):
            t = low + i
            phi_k = mapped(load_rows(k + b * k_b + h * k_h, t, T, k_t, d, D), map_k, f, F, WHOLE, PRECISION)
            value = load_rows(v + b * v_b + h * v_h, t, T, v_t, dv, DV)
            gradient = load_rows(dy + b * g_b + h * g_h, t, T, g_t, dv, DV)
            slope = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
            d_phi = scaled_right_product(gradient, tl.trans(state), PRECISION)
            if NORMALIZE:
                r = tl.load(inverse + row + t, mask=t < T, other=0.0)[:, None]
                out = load_rows(y + b * y_b + h * y_h, t, T, y_t, dv, DV).to(tl.float32)
                m = -tl.sum(gradient.to(tl.float32) * out, 1)
                tl.store(delta + row + t, m, mask=t < T)
                slope = (slope + m[:, None]) * r
                d_phi = (d_phi + m[:, None] * z[None, :]) * r
                z += tl.sum(phi_k, 0)
            slope = tl.where(t[:, None] >= t[None, :], slope, 0.0)
            d_phi += scaled_product(slope, phi_k.to(type), PRECISION)
            state = tl.dot(tl.trans(phi_k.to(type)), value, state, input_precision=PRECISION)
            query = load_rows(q + b * q_b + h * q_h, t, T, q_t, d, D)
            phi_q = mapped(query, map_q, f, F, WHOLE, PRECISION)
            d_phi = through_softmax(phi_q, d_phi, F)
            d_query = scaled_product(d_phi, tl.trans(map_q), PRECISION)
            store_rows(dq + b * o_b + h * o_h, t, T, o_t, d, d_query)
            total += scaled_right_product(tl.trans(query), d_phi, PRECISION)
    store_share(partial, total, 0, h, H, d, f, D, F)


@triton.jit
def keys_kernel(
    q, k, v, w_q, w_k, dy, inverse, delta, dk, dvalue, partial, B, H, T, d, dv, f,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, o_b, o_h, o_t, p_b, p_h, p_t,
    NORMALIZE: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv and this share's dW of the keys."""
    h = tl.program_id(0).to(tl.int64)
    type: tl.constexpr = q.dtype.element_ty
    map_q, map_k = signed(w_q, h, d, f, D, F, type), signed(w_k, h, d, f, D, F, type)
    i = tl.arange(0, C)
    total = tl.zeros((D, 2 * F), tl.float32)
    for batch in range(tl.program_id(1), B, tl.num_programs(1)):
        b = tl.cast(batch, tl.int64)
        row = (b * H + h) * T
        state, z = tl.zeros((DV, 2 * F), tl.float32), tl.zeros((2 * F,), tl.float32)
        chunks = tl.cdiv(T, C)
        for step in range(0, chunks):
            t = (chunks - 1 - step) * C + i
            phi_q = mapped(load_rows(q + b * q_b + h * q_h, t, T, q_t, d, D), map_q, f, F, WHOLE, PRECISION)
            key = load_rows(k + b * k_b + h * k_h, t, T, k_t, d, D)
            phi_k = mapped(key, map_k, f, F, WHOLE, PRECISION)
            value = load_rows(v + b * v_b + h * v_h, t, T, v_t, dv, DV)
            gradient = load_rows(dy + b * g_b + h * g_h, t, T, g_t, dv, DV)
            weight = tl.dot(phi_k.to(type), tl.trans(phi_q.to(type)), input_precision=PRECISION)
            slope = tl.dot(value, tl.trans(gradient), input_precision=PRECISION)
            entering = phi_q
            d_phi = scaled_right_product(value, state, PRECISION)
            if NORMALIZE:
                r = tl.load(inverse + row + t, mask=t < T, other=0.0)
                m = tl.load(delta + row + t, mask=t < T, other=0.0)
                weight *= r[None, :]
                slope = (slope + m[None, :]) * r[None, :]
                entering *= r[:, None]
                d_phi += z[None, :]
                z += tl.sum(entering * m[:, None], 0)
            seen = t[:, None] <= t[None, :]
            d_value = scaled_right_product(phi_k.to(type), tl.trans(state), PRECISION)
            d_value += scaled_product(tl.where(seen, weight, 0.0), gradient, PRECISION)
            store_rows(dvalue + b * p_b + h * p_h, t, T, p_t, dv, d_value)
            d_phi += scaled_product(tl.where(seen, slope, 0.0), phi_q.to(type), PRECISION)
            d_phi = through_softmax(phi_k, d_phi, F)
            d_key = scaled_product(d_phi, tl.trans(map_k), PRECISION)
            store_rows(dk + b * o_b + h * o_h, t, T, o_t, d, d_key)
            total += scaled_right_product(tl.trans(key), d_phi, PRECISION)
            state += scaled_right_product(tl.trans(gradient), entering, PRECISION)
    store_share(partial, total, 1, h, H, d, f, D, F)


def fits(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether these kernels take over from features in memory: tiles of the backward pass fit into registers, and
    sequences are enough for a program each, or short."""
    narrow = max(q.shape[3], v.shape[3], w.shape[2]) <= (16 if q.dtype == torch.float32 else 32)
    return narrow and (q.shape[0] * q.shape[1] >= MANY or q.shape[2] <= SHORT)


def tiling(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> dict:
    """Chunks of 16 tokens, one warp: no step waits for another's, and a token costs the fewest instructions. More warps
    where one's registers would spill: wider tiles, fp32's products (three of TF32), fp16's scales, masked features."""
    width = bucket(max(q.shape[3], v.shape[3], w.shape[2]), 16)
    whole = w.shape[2] == width
    warps = 8
    if width == 16:
        warps = 4 if q.dtype == torch.float32 else 1 if whole and q.dtype == torch.bfloat16 else 2
    # left to itself the assembler aims at fewer registers and spills a few
    schedule = {"C": 16, "num_warps": warps, "num_stages": 1, "maxnreg": 255}
    return schedule | {"D": width, "DV": width, "F": width, "WHOLE": whole, "PRECISION": precision(q.dtype)}


def shares(batch: int, heads: int, warps: int) -> int:
    """Of the batch, for the backward pass's programs of a head: one's part of dW comes from several sequences."""
    return max(1, min(batch, WARPS // (heads * warps)))


def forward(q, k, v, w_q, w_k, y, inverse, normalize: bool, eps: float) -> None:
    batch, heads, length, d = q.shape
    forward_kernel[grid(1, heads, batch)](
        q, k, v, w_q, w_k, y, inverse, eps, length, d, v.shape[3], w_q.shape[2], *strides(q, k, v, y),
        NORMALIZE=normalize, **tiling(q, v, w_q),
    )  # fmt: skip


def backward(q, k, v, w_q, w_k, y, inverse, dy, dq, dk, dv, normalize: bool) -> torch.Tensor:
    """Writes dq, dk, dv; returns dW of queries and keys, (2, H, d, f), fp32."""
    batch, heads, length, d = q.shape
    options = tiling(q, v, w_q) | {"NORMALIZE": normalize}
    programs = (heads, shares(batch, heads, options["num_warps"]))
    partial = q.new_empty(programs[1], 2, 2, *w_q.shape, dtype=torch.float32)
    delta = torch.empty_like(inverse)
    sizes = (batch, heads, length, d, v.shape[3], w_q.shape[2])
    queries_kernel[programs](
        q, k, v, w_q, w_k, y, dy, inverse, delta, dq, partial, *sizes, *strides(q, k, v, y, dy, dq), **options
    )
    keys_kernel[programs](
        q, k, v, w_q, w_k, dy, inverse, delta, dk, dv, partial, *sizes, *strides(q, k, v, dy, dk, dv), **options
    )
    return sum_shares(partial.flatten(0, 1))
