"""Hedgehog without a window, heads up to 128 and 64 features a side: a program walks over a span of a sequence.

As in `fused`, no feature is in memory: tokens of a chunk meet as pairs, those before it through a state that stays in
registers. Two kernels; with g = dy / (eps + sum of weights) and m = -dy.y / (eps + sum of weights),

    values:  y[t] = sum_{s <= t} (phi_q[t].phi_k[s]) v[s], normalised     dv[s] = sum_{t >= s} (phi_q[t].phi_k[s]) g[t]
    heads:   dphi_q[t] = sum_{s <= t} (g[t].v[s] + m[t]) phi_k[s]   dphi_k[s] = sum_{t >= s} (g[t].v[s] + m[t]) phi_q[t]

those on the right backwards (REVERSE). A program of values has some columns of y, as many as its registers hold. The
gradients of the two halves of phi (`halves`) are apart until they meet in q W: a program of heads has one half, and
writes dq or dk as if the other were not there; they are added afterwards, as the programs' parts of dW are, in order.

Where there are fewer sequences than the GPU has room for, they are cut into spans: a first pass writes the state that
each adds, and a program starts from the sum of those before it.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.hedgehog_attention.halves import (
    add_beside,
    add_left,
    add_product,
    add_right,
    add_share,
    add_spans,
    columns,
    half,
    halves,
    load_map,
    over_columns,
    through_softmax,
    weight_of,
)  # fmt: skip
from kernels.linear_attention.sums import strides, sum_gradient
from kernels.tiles import bucket, grid, load_rows, precision, sequence, store_rows

ON_CARDS = False  # not on a GPU before one has shown that they are right: Triton 3.6's code of 64 rows was not always
PROGRAMS = 264  # two for each SM of an H100: with fewer, sequences are cut
LEAST = 8  # chunks a span


@triton.jit
def states_kernel(
    z, c, w, inverse, delta, states, beside, T, SPAN, d, dv, f, z_b, z_h, z_t, c_b, c_h, c_t,
    REVERSE: tl.constexpr, NORMALIZE: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a span adds to one half of the state, c^T phi(z): (B H, spans, 2, DV, F), and of features, (.., F)."""
    low = tl.program_id(0) // 2 * SPAN
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    z, c = z + b * z_b + h * z_h, c + b * c_b + h * c_h
    inverse, delta = inverse + sequence() * T, delta + sequence() * T
    type: tl.constexpr = z.dtype.element_ty
    map_z = load_map(w, h, d, f, 1.0 - 2.0 * (tl.program_id(0) % 2), D, F, type)
    state, sums = tl.zeros((DV, F), tl.float32), tl.zeros((F, 16), tl.float32)
    for step in tl.range(0, tl.cdiv(tl.minimum(T - low, SPAN), C), disable_licm=True):
        t = low + step * C + tl.arange(0, C)
        at = tl.minimum(t, T - 1)
        phi = half(load_rows(z, at, T, z_t, d, D, True), map_z, f, WHOLE, PRECISION)
        r, scale = weight_of(inverse, t, T, type, REVERSE, NORMALIZE)
        if REVERSE:
            phi *= r[:, None]
        if NORMALIZE:
            m = scale * tl.load(delta + t, mask=t < T, other=0.0) if REVERSE else tl.full((C,), 1.0, tl.float32)
            sums = add_right(sums, tl.trans(phi.to(type)), columns(m, 0, 16), PRECISION)
        value = load_rows(c, at, T, c_t, dv, DV, True)
        state = add_product(state, tl.trans(value), phi.to(type), scale, REVERSE and type == tl.float16, PRECISION)
    row = sequence() * tl.num_programs(0) + tl.program_id(0)
    j = tl.arange(0, F)
    tl.store(states + row * (DV * F) + tl.arange(0, DV)[:, None] * F + j[None, :], state)
    tl.store(beside + row * F + j, tl.sum(sums, 1) * (1 / 16))


@triton.jit
def values_kernel(
    x, z, c, w_x, w_z, out, inverse, states, beside, eps, T, SPAN, d, dv, f,
    x_b, x_h, x_t, z_b, z_h, z_t, c_b, c_h, c_t, o_b, o_h, o_t,
    SPANS: tl.constexpr, REVERSE: tl.constexpr, NORMALIZE: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BN: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BN columns of y, from x = q, z = k, c = v, or with REVERSE of dv, from x = k, z = q, c = dy."""
    spans, span = tl.cdiv(T, SPAN), tl.program_id(0) // tl.cdiv(dv, BN)
    low, column = span * SPAN, tl.program_id(0) % tl.cdiv(dv, BN) * BN
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    type: tl.constexpr = x.dtype.element_ty
    map_x, map_z = load_map(w_x, h, d, f, 1.0, D, F, type), load_map(w_z, h, d, f, 1.0, D, F, type)
    i = tl.arange(0, C)
    up, down, sums = tl.zeros((BN, F), tl.float32), tl.zeros((BN, F), tl.float32), tl.zeros((F, 16), tl.float32)
    e = tl.arange(0, 16)[None, :]
    if SPANS:
        j, n = tl.arange(0, F), tl.arange(0, BN)[:, None]
        states += sequence() * spans * (2 * DV * F) + (column + n) * F + j[None, :]
        up = add_spans(up, states, spans, span, 2 * DV * F, REVERSE)
        down = add_spans(down, states + DV * F, spans, span, 2 * DV * F, REVERSE)
        sums = add_spans(
            sums, beside + sequence() * spans * (2 * F) + e // 8 * F + j[:, None], spans, span, 2 * F, REVERSE
        )
    chunks = tl.cdiv(tl.minimum(T - low, SPAN), C)
    for step in tl.range(0, chunks, disable_licm=True):
        t = low + (chunks - 1 - step if REVERSE else step) * C + i
        at = tl.minimum(t, T - 1)
        r, scale = weight_of(inverse + sequence() * T, t, T, type, REVERSE, NORMALIZE)
        z_up, z_down = halves(
            load_rows(z + b * z_b + h * z_h, at, T, z_t, d, D, True), map_z, r, f, WHOLE, REVERSE, PRECISION
        )
        x_up, x_down = halves(
            load_rows(x + b * x_b + h * x_h, at, T, x_t, d, D, True), map_x, r, f, WHOLE, False, PRECISION
        )
        value = load_rows(c + b * c_b + h * c_h + column, at, T, c_t, dv - column, BN, True)
        p = tl.dot(x_up, tl.trans(z_up), input_precision=PRECISION)
        p = tl.dot(x_down, tl.trans(z_down), p, input_precision=PRECISION)
        p = tl.where((i[:, None] <= i[None, :]) if REVERSE else (i[:, None] >= i[None, :]), p, 0.0)
        acc = tl.dot(p.to(type), value, input_precision=PRECISION)
        if REVERSE and type == tl.float16:
            acc *= scale
        acc = add_right(acc, x_up, tl.trans(up), PRECISION)
        acc = add_right(acc, x_down, tl.trans(down), PRECISION)
        if NORMALIZE and not REVERSE:
            zero = tl.zeros((C, 16), tl.float32)
            before = tl.where(e < 8, add_right(zero, x_up, sums, PRECISION), add_right(zero, x_down, sums, PRECISION))
            r = 1 / (tl.sum(p, 1) + tl.sum(before, 1) * (1 / 8) + eps)
            tl.store(inverse + sequence() * T + t, r, mask=(t < T) & (0 * t + column == 0))
            acc *= r[:, None]
            sums = tl.dot(tl.trans(z_up), columns(0 * r + 1, 0, 8).to(type), sums, input_precision=PRECISION)
            sums = tl.dot(tl.trans(z_down), columns(0 * r + 1, 8, 16).to(type), sums, input_precision=PRECISION)
        # tokens beyond T are in the last chunk, whose state nobody reads; with REVERSE they weigh nothing
        up = add_product(up, tl.trans(value), z_up, scale, REVERSE and type == tl.float16, PRECISION)
        down = add_product(down, tl.trans(value), z_down, scale, REVERSE and type == tl.float16, PRECISION)
        store_rows(out + b * o_b + h * o_h + column, t, T, o_t, dv - column, acc)


@triton.jit
def heads_kernel(
    x, z, a, c, w_x, w_z, out, inverse, delta, states, beside, partial, T, SPAN, d, dv, f,
    x_b, x_h, x_t, z_b, z_h, z_t, a_b, a_h, a_t, c_b, c_h, c_t, o_half, o_b, o_h, o_t,
    SPANS: tl.constexpr, REVERSE: tl.constexpr, NORMALIZE: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One half's part of dq, from x = q, z = k, a = dy, c = v, or with REVERSE of dk, from x = k, z = q, a = v, c = dy;
    and of dW. out (2, B, H, T, d), partial (B H, spans, 2, D, F)."""
    spans, span, which = tl.num_programs(0) // 2, tl.program_id(0) // 2, tl.program_id(0) % 2
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    type: tl.constexpr = x.dtype.element_ty
    i = tl.arange(0, C)
    state, sums = tl.zeros((DV, F), tl.float32), tl.zeros((F, 16), tl.float32)
    if SPANS:
        j, n = tl.arange(0, F), tl.arange(0, DV)[:, None]
        row = sequence() * spans * 2 + which
        state = add_spans(state, states + row * (DV * F) + n * F + j[None, :], spans, span, 2 * DV * F, REVERSE)
        place = beside + row * F + j[:, None] + 0 * tl.arange(0, 16)[None, :]
        sums = add_spans(sums, place, spans, span, 2 * F, REVERSE)
    sign = 1.0 - 2.0 * which
    map_x, map_z = load_map(w_x, h, d, f, sign, D, F, type), load_map(w_z, h, d, f, sign, D, F, type)
    chunks = tl.cdiv(tl.minimum(T - span * SPAN, SPAN), C)
    for step in tl.range(0, chunks, disable_licm=True):
        t = span * SPAN + (chunks - 1 - step if REVERSE else step) * C + i
        at = tl.minimum(t, T - 1)
        phi = half(load_rows(z + b * z_b + h * z_h, at, T, z_t, d, D, True), map_z, f, WHOLE, PRECISION)
        scale = 1.0
        if REVERSE:
            r, scale = weight_of(inverse + sequence() * T, t, T, type, True, NORMALIZE)
            phi *= r[:, None]
        phi = phi.to(type)
        # one tile after the other: each is in registers until it is in a product
        rows = load_rows(a + b * a_b + h * a_h, at, T, a_t, dv, DV, True)
        d_phi = add_right(tl.zeros((C, F), tl.float32), rows, state, PRECISION)
        if NORMALIZE:
            m = tl.load(delta + sequence() * T + t, mask=t < T, other=0.0)
            d_phi = add_beside(d_phi, 0 * m + 1 if REVERSE else m, sums, type, PRECISION)
            sums = add_right(sums, tl.trans(phi), columns(m * scale if REVERSE else 0 * m + 1, 0, 16), PRECISION)
        value = load_rows(c + b * c_b + h * c_h, at, T, c_t, dv, DV, True)
        slope = tl.dot(rows, tl.trans(value), input_precision=PRECISION)
        if NORMALIZE:
            slope += over_columns(m, type, PRECISION) if REVERSE else m[:, None]
        slope = tl.where((i[:, None] <= i[None, :]) if REVERSE else (i[:, None] >= i[None, :]), slope, 0.0)
        if REVERSE and type == tl.float16:
            slope *= scale
        d_phi = add_left(d_phi, slope, phi, PRECISION)
        state = add_product(state, tl.trans(value), phi, scale, REVERSE and type == tl.float16, PRECISION)
        head = load_rows(x + b * x_b + h * x_h, at, T, x_t, d, D, True)
        d_map = through_softmax(half(head, map_x, f, WHOLE, PRECISION), d_phi)
        if not REVERSE:
            d_map *= weight_of(inverse + sequence() * T, t, T, type, False, NORMALIZE)[0][:, None]
        d_head = add_left(tl.zeros((C, D), tl.float32), d_map, tl.trans(map_x), PRECISION)
        store_rows(out + which.to(tl.int64) * o_half + b * o_b + h * o_h, t, T, o_t, d, d_head)
        share = partial + (sequence() * tl.num_programs(0) + tl.program_id(0)) * (D * F)
        add_share(share, tl.trans(head), d_map, step, PRECISION)


def fits(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether the state, and what a chunk of heads holds beside it, fit into registers. In fp32, masks of features over
    16 would not."""
    heads, features = max(q.shape[3], v.shape[3]), w.shape[2]
    if q.is_cuda and not ON_CARDS:
        return False
    if q.dtype == torch.float32:
        return heads <= 64 and (features <= 16 or features == 32)
    return heads <= 128 and features <= 64


def tiling(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> dict:
    """Four warps have each a row of matrix units' tiles in 64 tokens. In fp16 they would spill by its scales; eight
    have half of each product twice. Products in fp32 are three of TF32, whose operands take registers: small chunks,
    heads of one width."""
    single, features = q.dtype == torch.float32, bucket(w.shape[2])
    widths = {"D": 64, "DV": 64} if single else {"D": bucket(q.shape[3]), "DV": bucket(v.shape[3])}
    # left to itself the assembler aims at fewer registers and spills a few
    schedule = {"num_warps": 4 if q.dtype == torch.bfloat16 else 8, "num_stages": 2 if single else 1, "maxnreg": 255}
    sizes = {"C": 16 if single else 64, "F": features, "WHOLE": w.shape[2] == features}
    return widths | schedule | sizes | {"PRECISION": precision(q.dtype)}


def width(v: torch.Tensor) -> int:
    """Columns of y, or of dv, that one program has."""
    return 16 if v.dtype == torch.float32 else bucket(v.shape[3], 16, 64)


def cut(q: torch.Tensor, chunk: int) -> tuple[int, int]:
    """How many spans, of how many tokens."""
    chunks = triton.cdiv(q.shape[2], chunk)
    each = triton.cdiv(chunks, max(1, min(chunks // LEAST, PROGRAMS // (q.shape[0] * q.shape[1]))))
    return triton.cdiv(chunks, each), each * chunk


class Walks:
    """The launches, forward or backward through the tokens (REVERSE)."""

    def __init__(self, x, z, c, w_x, w_z, inverse, delta, reverse: bool, normalize: bool):
        self.batch, self.heads, length, d = x.shape
        self.options = tiling(x, c, w_x) | {"REVERSE": reverse, "NORMALIZE": normalize}
        self.count, span = cut(x, self.options["C"])
        self.sizes = (length, span, d, c.shape[3], w_x.shape[2])
        self.x, self.z, self.c, self.w_x, self.w_z, self.inverse, self.delta = x, z, c, w_x, w_z, inverse, delta
        shape = (self.batch * self.heads, self.count, 2) if self.count > 1 else (0,)
        tile = (self.options["DV"], self.options["F"])
        self.states = x.new_empty(*shape, *tile, dtype=torch.float32)
        self.beside = x.new_empty(*shape, tile[1], dtype=torch.float32)
        if self.count > 1:
            states_kernel[grid(2 * self.count, self.heads, self.batch)](
                z, c, w_z, inverse, delta, self.states, self.beside, *self.sizes, *strides(z, c), **self.options
            )
        self.options["SPANS"] = self.count > 1

    def values(self, out, eps: float) -> None:
        columns = width(out)
        programs = grid(self.count * triton.cdiv(out.shape[3], columns), self.heads, self.batch)
        values_kernel[programs](
            self.x, self.z, self.c, self.w_x, self.w_z, out, self.inverse, self.states, self.beside, eps, *self.sizes,
            *strides(self.x, self.z, self.c, out), BN=columns, **self.options,
        )  # fmt: skip

    def gradients(self, a, dx) -> torch.Tensor:
        """Writes dx; returns W's, (H, d, f), fp32."""
        x, programs = self.x, (2 * self.count, self.heads, self.batch)
        parts = torch.empty(2, *x.shape, dtype=x.dtype, device=x.device)
        tile = (self.options["D"], self.options["F"])
        partial = x.new_empty(self.batch, self.heads, self.count, 2, *tile, dtype=torch.float32)
        heads_kernel[grid(*programs)](
            x, self.z, a, self.c, self.w_x, self.w_z, parts, self.inverse, self.delta, self.states, self.beside,
            partial, *self.sizes, *strides(x, self.z, a, self.c), *parts.stride()[:4], **self.options,
        )  # fmt: skip
        up, down = partial[:, :, :, :, : x.shape[3], : self.w_x.shape[2]].sum((0, 2)).unbind(1)
        torch.add(parts[0], parts[1], out=dx)
        return up - down


def forward(q, k, v, w_q, w_k, y, inverse, normalize: bool, eps: float) -> None:
    Walks(q, k, v, w_q, w_k, inverse, inverse, False, normalize).values(y, eps)


def backward(q, k, v, w_q, w_k, y, inverse, dy, dq, dk, dv, normalize: bool) -> torch.Tensor:
    """Writes dq, dk, dv; returns dW of queries and keys, (2, H, d, f), fp32."""
    delta = sum_gradient(dy, y, normalize)
    dw_q = Walks(q, k, v, w_q, w_k, inverse, delta, False, normalize).gradients(dy, dq)
    walks = Walks(k, q, dy, w_k, w_q, inverse, delta, True, normalize)
    walks.values(dv, 0.0)
    return torch.stack([dw_q, walks.gradients(v, dk)])
