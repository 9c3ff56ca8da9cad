"""The kernels of Taylor attention: weights of pairs of tokens, and beyond a span of tokens a state of features.

A program owns a block of rows and walks over the columns that it meets within its span, as in flash attention without
softmax. What lies beyond the span comes from the state that the span finds: packed features of one side times values of
the other, 153 features at d = 16, a block of features at a time, made where they are used and never in memory. A
feature is a product of two columns; products with 0-1 matrices choose them, exactly, on matrix units.

Weights are rounded to the type of the data, in fp16 each row first scaled by its largest, as they grow with the square
of the scores. Features are formed in fp32; with bf16, they and the states are rounded to it where they are multiplied
(states add up in fp32); fp16 has too narrow a range for them, so there they stay fp32 and are multiplied as TF32.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.linear_attention.sums import scaled_product, strides
from kernels.taylor_attention.reference import packed_size
from kernels.tiles import bucket, grid, precision


@triton.jit
def pairs(f, D, scale):
    """Two columns and the factor of each feature; column -1 stands for 1. First the products x[j] x[(j + m) % D], m =
    0, 1, ... as far as they differ, then x, then 1; beyond them the factor is 0. scale: 1 / sqrt(D)."""
    products = D * (D + 1) // 2
    first = tl.where(f < products, f % D, tl.where(f < products + D, f - products, -1))
    second = tl.where(f < products, (f % D + f // D) % D, -1)
    factor = tl.where(f < D, 0.7071067811865476 * scale, scale)
    factor = tl.where(f < products, factor, tl.sqrt(scale))
    factor = tl.where(f < products + D, factor, 1.0)
    return first, second, tl.where(f <= products + D, factor, 0.0)


@triton.jit
def _chosen(x, e, column, PRECISION: tl.constexpr):
    """x[:, column] in fp32, 1 where column is -1: x (rows, BD), column (BF,)."""
    matrix = (e[:, None] == column[None, :]).to(x.dtype)
    return tl.dot(x, matrix, input_precision=PRECISION) + tl.where(column < 0, 1.0, 0.0)[None, :]


@triton.jit
def states_kernel(
    k, v, inverse, delta, states, beside, scale,
    H, T, D, N, F, k_b, k_h, k_t, v_b, v_h, v_t,
    REVERSE: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, CARRIED: tl.constexpr,
    SPAN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of what each span finds: phi(k)^T v over the tokens before; with REVERSE (k = q, v = dy) those after.

    Features bear their factor twice here, where a program has few of them a thread; their readers leave it out.

    states (B H, spans, F, dv), beside (B H, spans, F) where v = 1, or the sum's gradient.
    """
    head = tl.program_id(0).to(tl.int64)
    batch, place = head // H, head % H
    k += batch * k_b + place * k_h
    v += batch * v_b + place * v_h
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    e = tl.arange(0, BD)
    first, second, factor = pairs(f, D, scale)
    choose_first = (first[:, None] == e[None, :]).to(k.dtype.element_ty)  # (BF, BD)
    choose_second = (second[:, None] == e[None, :]).to(k.dtype.element_ty)
    state = tl.zeros((BF, BN), tl.float32)
    carried = states.dtype.element_ty
    z = tl.zeros((BF,), tl.float32)
    spans, steps = tl.cdiv(T, SPAN), tl.cdiv(T, BT)
    for step in range(0, steps):
        block = steps - 1 - step if REVERSE else step
        t = block * BT + tl.arange(0, BT)
        if (block == steps - 1 or (block + 1) * BT % SPAN == 0) if REVERSE else (block * BT % SPAN == 0):
            where = (head * spans + block * BT // SPAN) * F + f
            tile = states + where[:, None] * N + n[None, :]
            tl.store(tile, state.to(carried), mask=(f < F)[:, None] & (n < N)[None, :])
            if NORMALIZE:
                tl.store(beside + where, z, mask=(f < F) & (0 * f + tl.program_id(2) == 0))
        x = tl.load(k + t[None, :] * k_t + e[:, None], mask=(t < T)[None, :] & (e < D)[:, None], other=0.0)  # (BD, BT)
        values = tl.load(v + t[:, None] * v_t + n[None, :], mask=(t < T)[:, None] & (n < N)[None, :], other=0.0)
        one = tl.dot(choose_first, x, input_precision=PRECISION) + tl.where(first < 0, 1.0, 0.0)[:, None]
        two = tl.dot(choose_second, x, input_precision=PRECISION) + tl.where(second < 0, 1.0, 0.0)[:, None]
        phi = one * two * (factor * factor)[:, None]  # (BF, BT)
        phi = tl.where((t < T)[None, :], phi, 0.0)
        if NORMALIZE and REVERSE:
            phi *= tl.load(inverse + head * T + t, mask=t < T, other=0.0)[None, :]
            z += tl.sum(phi * tl.load(delta + head * T + t, mask=t < T, other=0.0)[None, :], 1)
        elif NORMALIZE:
            z += tl.sum(phi, 1)
        state = tl.dot(phi.to(carried), values.to(carried), state, input_precision=CARRIED)


@triton.jit
def forward_kernel(
    q, k, v, y, inverse, states, beside, eps, scale,
    H, T, D, N, F, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t,
    STATES: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, CARRIED: tl.constexpr,
    SPAN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y of a block of queries and of columns, and 1 / (eps + sum of weights)."""
    head = tl.program_id(0).to(tl.int64)
    batch, place = head // H, head % H
    k += batch * k_b + place * k_h
    v += batch * v_b + place * v_h
    low = (tl.num_programs(1) - 1 - tl.program_id(1)) * BT  # the longest rows first
    i = low + tl.arange(0, BT)
    e, n = tl.arange(0, BD), tl.program_id(2) * BN + tl.arange(0, BN)
    own = q + batch * q_b + place * q_h + i[:, None] * q_t + e[None, :]
    own = tl.load(own, mask=(i < T)[:, None] & (e < D)[None, :], other=0.0)  # (BT, BD)
    acc = tl.zeros((BT, BN), tl.float32)
    total = tl.zeros((BT,), tl.float32)
    start = 0
    if STATES:
        start = low // SPAN * SPAN
        found = (head * tl.cdiv(T, SPAN) + low // SPAN) * F
        for f0 in range(0, tl.where(start > 0, F, 0), BF):
            f = f0 + tl.arange(0, BF)
            first, second, _ = pairs(f, D, scale)
            phi = _chosen(own, e, first, PRECISION) * _chosen(own, e, second, PRECISION)  # (BT, BF)
            state = states + (found + f[:, None]) * N + n[None, :]
            state = tl.load(state, mask=(f < F)[:, None] & (n < N)[None, :], other=0.0)  # (BF, BN)
            acc = tl.dot(phi.to(state.dtype), state, acc, input_precision=CARRIED)
            if NORMALIZE:
                total += tl.sum(phi * tl.load(beside + found + f, mask=f < F, other=0.0)[None, :], 1)
    for j0 in range(start, low + BT, BT):
        j = j0 + tl.arange(0, BT)
        keys = tl.load(k + j[None, :] * k_t + e[:, None], mask=(j < T)[None, :] & (e < D)[:, None], other=0.0)
        values = tl.load(v + j[:, None] * v_t + n[None, :], mask=(j < T)[:, None] & (n < N)[None, :], other=0.0)
        x = tl.dot(own, keys, input_precision=PRECISION) * scale  # (BT, BT)
        w = tl.where(i[:, None] >= j[None, :], 1 + x + 0.5 * x * x, 0.0)
        total += tl.sum(w, 1)
        acc += scaled_product(w, values, PRECISION)
    if NORMALIZE:
        r = 1 / (total + eps)
        tl.store(inverse + head * T + i, r, mask=(i < T) & (0 * i + tl.program_id(2) == 0))
        acc *= r[:, None]
    out = y + batch * y_b + place * y_h + i[:, None] * y_t + n[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=(i < T)[:, None] & (n < N)[None, :])


@triton.jit
def key_kernel(
    x, u, z, w, dx, inverse, delta, states, beside, scale,
    H, T, D, N, F, x_b, x_h, x_t, u_b, u_h, u_t, z_b, z_h, z_t, w_b, w_h, w_t, dx_b, dx_h, dx_t,
    KEYS: tl.constexpr, STATES: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, CARRIED: tl.constexpr,
    SPAN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries: rows x = q, u = dy, columns z = k, w = v, s <= t; a tile of values at a time.

    KEYS: dk of a block of keys, rows x = k, u = v, columns z = q, w = dy, s >= t.
    """
    head = tl.program_id(0).to(tl.int64)
    batch, place = head // H, head % H
    u += batch * u_b + place * u_h
    z += batch * z_b + place * z_h
    w += batch * w_b + place * w_h
    low = (tl.program_id(1) if KEYS else tl.num_programs(1) - 1 - tl.program_id(1)) * BT
    i = low + tl.arange(0, BT)
    e = tl.arange(0, BD)
    row = (i < T)[:, None] & (e < D)[None, :]
    own = tl.load(x + batch * x_b + place * x_h + i[:, None] * x_t + e[None, :], mask=row, other=0.0)
    acc = tl.zeros((BT, BD), tl.float32)
    if NORMALIZE and not KEYS:
        d = tl.load(delta + head * T + i, mask=i < T, other=0.0)
    start = low if KEYS else 0
    end = T if KEYS else low + BT
    if STATES:
        span, spans = low // SPAN, tl.cdiv(T, SPAN)
        if KEYS:
            end = tl.minimum(T, (span + 1) * SPAN)
            features = tl.where(span < spans - 1, F, 0)
        else:
            start = span * SPAN
            features = tl.where(span > 0, F, 0)
        found = (head * spans + span) * F
        carried = states.dtype.element_ty
        for f0 in range(0, features, BF):
            f = f0 + tl.arange(0, BF)
            change = tl.zeros((BT, BF), tl.float32)  # the gradient of the rows' features
            for n0 in range(0, N, BN):
                n = n0 + tl.arange(0, BN)
                wide = tl.load(u + i[:, None] * u_t + n[None, :], mask=(i < T)[:, None] & (n < N)[None, :], other=0.0)
                state = states + (found + f[None, :]) * N + n[:, None]
                state = tl.load(state, mask=(f < F)[None, :] & (n < N)[:, None], other=0.0)  # (BN, BF)
                change = tl.dot(wide.to(carried), state, change, input_precision=CARRIED)
            if NORMALIZE:
                column = tl.load(beside + found + f, mask=f < F, other=0.0)[None, :]
                change += (column + tl.zeros((BT, 1), tl.float32)) if KEYS else d[:, None] * column
            first, second, _ = pairs(f, D, scale)
            to_first = (change * _chosen(own, e, second, PRECISION)).to(carried)
            acc = tl.dot(to_first, (first[:, None] == e[None, :]).to(carried), acc, input_precision=CARRIED)
            to_second = (change * _chosen(own, e, first, PRECISION)).to(carried)
            acc = tl.dot(to_second, (second[:, None] == e[None, :]).to(carried), acc, input_precision=CARRIED)
    for j0 in range(start, end, BT):
        j = j0 + tl.arange(0, BT)
        gradient = tl.zeros((BT, BT), tl.float32)
        for n0 in range(0, N, BN):
            n = n0 + tl.arange(0, BN)
            wide = tl.load(u + i[:, None] * u_t + n[None, :], mask=(i < T)[:, None] & (n < N)[None, :], other=0.0)
            across = tl.load(w + j[None, :] * w_t + n[:, None], mask=(j < T)[None, :] & (n < N)[:, None], other=0.0)
            gradient += tl.dot(wide, across, input_precision=PRECISION)
        turned = tl.load(z + j[None, :] * z_t + e[:, None], mask=(j < T)[None, :] & (e < D)[:, None], other=0.0)
        score = tl.dot(own, turned, input_precision=PRECISION) * scale
        if NORMALIZE:
            gradient += tl.load(delta + head * T + j, mask=j < T, other=0.0)[None, :] if KEYS else d[:, None]
        gradient *= (1 + score) * scale
        if NORMALIZE and KEYS:
            gradient *= tl.load(inverse + head * T + j, mask=j < T, other=0.0)[None, :]
        met = (i[:, None] <= j[None, :]) if KEYS else (i[:, None] >= j[None, :])
        others = tl.load(z + j[:, None] * z_t + e[None, :], mask=(j < T)[:, None] & (e < D)[None, :], other=0.0)
        acc += scaled_product(tl.where(met, gradient, 0.0), others, PRECISION)
    if NORMALIZE and not KEYS:
        acc *= tl.load(inverse + head * T + i, mask=i < T, other=0.0)[:, None]
    tl.store(dx + batch * dx_b + place * dx_h + i[:, None] * dx_t + e[None, :], acc.to(dx.dtype.element_ty), mask=row)


@triton.jit
def value_kernel(
    q, k, dy, dv, inverse, states, scale,
    H, T, D, N, F, q_b, q_h, q_t, k_b, k_h, k_t, dy_b, dy_h, dy_t, dv_b, dv_h, dv_t,
    STATES: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, CARRIED: tl.constexpr,
    SPAN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dv of a block of keys and of columns."""
    head = tl.program_id(0).to(tl.int64)
    batch, place = head // H, head % H
    q += batch * q_b + place * q_h
    dy += batch * dy_b + place * dy_h
    low = tl.program_id(1) * BT
    i = low + tl.arange(0, BT)
    e, n = tl.arange(0, BD), tl.program_id(2) * BN + tl.arange(0, BN)
    own = k + batch * k_b + place * k_h + i[:, None] * k_t + e[None, :]
    own = tl.load(own, mask=(i < T)[:, None] & (e < D)[None, :], other=0.0)  # (BT, BD)
    acc = tl.zeros((BT, BN), tl.float32)
    end = T
    if STATES:
        span, spans = low // SPAN, tl.cdiv(T, SPAN)
        end = tl.minimum(T, (span + 1) * SPAN)
        found = (head * spans + span) * F
        for f0 in range(0, tl.where(span < spans - 1, F, 0), BF):
            f = f0 + tl.arange(0, BF)
            first, second, _ = pairs(f, D, scale)
            phi = _chosen(own, e, first, PRECISION) * _chosen(own, e, second, PRECISION)
            state = states + (found + f[:, None]) * N + n[None, :]
            state = tl.load(state, mask=(f < F)[:, None] & (n < N)[None, :], other=0.0)  # (BF, BN)
            acc = tl.dot(phi.to(state.dtype), state, acc, input_precision=CARRIED)
    for j0 in range(low, end, BT):
        j = j0 + tl.arange(0, BT)
        queries = tl.load(q + j[None, :] * q_t + e[:, None], mask=(j < T)[None, :] & (e < D)[:, None], other=0.0)
        values = tl.load(dy + j[:, None] * dy_t + n[None, :], mask=(j < T)[:, None] & (n < N)[None, :], other=0.0)
        x = tl.dot(own, queries, input_precision=PRECISION) * scale  # (BT, BT)
        w = tl.where(i[:, None] <= j[None, :], 1 + x + 0.5 * x * x, 0.0)
        if NORMALIZE:
            w *= tl.load(inverse + head * T + j, mask=j < T, other=0.0)[None, :]
        acc += scaled_product(w, values, PRECISION)
    out = dv + batch * dv_b + place * dv_h + i[:, None] * dv_t + n[None, :]
    tl.store(out, acc.to(dv.dtype.element_ty), mask=(i < T)[:, None] & (n < N)[None, :])


SPAN = 256  # tokens that meet as pairs where there are states


def with_states(d: int, length: int, backward: bool, dtype: torch.dtype) -> bool:
    """Whether tokens further back are met through features. A token costs T / 2 (d + dv) by pairs alone, and with
    states SPAN / 2 (d + dv) and F dv twice, for their making and their reading. Features are dearer than their
    arithmetic: the factors are what an H100 showed, where both take the same time."""
    factor = 32 if not backward else 3 if dtype == torch.bfloat16 and d <= 16 else 18
    return d <= 32 and length > SPAN + factor * packed_size(d)


def blocks(q: torch.Tensor, v: torch.Tensor, states: bool) -> dict:
    """Rows, columns and features a block, warps. Products in fp32 are three of TF32, whose operands take registers."""
    fp32 = q.dtype == torch.float32
    return {
        "PRECISION": precision(q.dtype), "CARRIED": "tf32x3" if fp32 else "tf32", "SPAN": SPAN,
        "BT": bucket(q.shape[2], 16, 32 if fp32 else 64), "BD": bucket(q.shape[3], 16, 64), "BF": 16 if fp32 else 64,
        "BN": 32 if fp32 else bucket(v.shape[3], 16, 64), "num_warps": 8 if states and q.dtype == torch.float16 else 4,
        "num_stages": 1 if fp32 else 2,
    } | ({"maxnreg": 240} if states and fp32 else {})  # fmt: skip  # the assembler aims at 168 registers, and spills


def sizes(q: torch.Tensor, v: torch.Tensor) -> tuple[float, int, int, int, int, int]:
    return q.shape[3] ** -0.5, q.shape[1], q.shape[2], q.shape[3], v.shape[3], packed_size(q.shape[3])


def scan(k, v, inverse, delta, normalize: bool, reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The states that the spans find, and the vectors beside them."""
    batch, heads, length, d = k.shape
    features, width, spans = packed_size(d), v.shape[3], triton.cdiv(length, SPAN)
    carried = torch.float32 if k.dtype == torch.float16 else k.dtype
    states = k.new_empty(batch, heads, spans, features, width, dtype=carried)
    beside = k.new_empty((batch, heads, spans, features) if normalize else 0, dtype=torch.float32)
    tile = blocks(k, v, True)
    states_kernel[(batch * heads, triton.cdiv(features, tile["BF"]), triton.cdiv(width, tile["BN"]))](
        k, v, inverse, delta, states, beside, *sizes(k, v), *strides(k, v), REVERSE=reverse, NORMALIZE=normalize, **tile
    )
    return states, beside


def forward(q, k, v, y, inverse, normalize: bool, eps: float) -> None:
    states = with_states(q.shape[3], q.shape[2], False, q.dtype)
    found = scan(k, v, inverse, inverse, normalize, False) if states else (y, y)
    tile = blocks(q, v, states)
    programs = grid(q.shape[0] * q.shape[1], triton.cdiv(q.shape[2], tile["BT"]), triton.cdiv(v.shape[3], tile["BN"]))
    forward_kernel[programs](
        q, k, v, y, inverse, *found, eps, *sizes(q, v), *strides(q, k, v, y), STATES=states, NORMALIZE=normalize, **tile
    )


def backward(q, k, v, inverse, delta, dy, normalize: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    states = with_states(q.shape[3], q.shape[2], True, q.dtype)
    tile = blocks(q, v, states)
    options = {"STATES": states, "NORMALIZE": normalize} | tile
    # 64 rows only where an H100 showed that they are right: Triton 3.6's code of other configurations, on asynchronous
    # matrix units, reads outside its memory; at a width of 40, its dk is wrong
    seen = states and q.dtype == torch.bfloat16 and q.shape[3] == 16 and v.shape[3] == tile["BN"] == 64
    rows = min(tile["BT"], 64 if seen else 32)
    found = (dv, dv)
    for keys, (x, u, z, w, dx) in enumerate(((q, dy, k, v, dq), (k, v, q, dy, dk))):
        if states:
            found = scan(z, w, inverse, delta, normalize, bool(keys))
        key_kernel[grid(q.shape[0] * q.shape[1], triton.cdiv(q.shape[2], rows))](
            x, u, z, w, dx, inverse, delta, *found, *sizes(q, v), *strides(x, u, z, w, dx),
            KEYS=bool(keys), **options | {"BT": rows},
        )  # fmt: skip
    programs = grid(q.shape[0] * q.shape[1], triton.cdiv(q.shape[2], tile["BT"]), triton.cdiv(v.shape[3], tile["BN"]))
    value_kernel[programs](q, k, dy, dv, inverse, found[0], *sizes(q, v), *strides(q, k, dy, dv), **options)
    return dq, dk, dv
