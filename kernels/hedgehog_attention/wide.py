"""Hedgehog without a window, heads up to 128 and 64 features a side: a program walks over a span of a sequence.

As in `fused`, no feature is in memory: tokens of a chunk meet as pairs, those before it through a state that stays in
registers. The sums of weights come first, then two kernels; with g = dy / (eps + sum of weights) and m = -dy.y / (eps +
sum of weights),

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
    state, sums = tl.zeros((DV, F), tl.float32), tl.zeros((F,), tl.float32)
    for step in tl.range(0, tl.cdiv(tl.minimum(T - low, SPAN), C), disable_licm=True):
        t = low + step * C + tl.arange(0, C)
        at = tl.minimum(t, T - 1)
        phi = half(load_rows(z, at, T, z_t, d, D, True), map_z, f, WHOLE, PRECISION)
        if REVERSE:
            phi *= weight_of(inverse, t, T, NORMALIZE)[:, None]
        phi = phi.to(type)
        if NORMALIZE:
            m = tl.load(delta + t, mask=t < T, other=0.0) if REVERSE else tl.full((C,), 1.0, tl.float32)
            sums += tl.sum(phi.to(tl.float32) * m[:, None], 0)
        value = load_rows(c, at, T, c_t, dv, DV, True)
        state = tl.dot(tl.trans(value), phi, state, input_precision=PRECISION)
    row = sequence() * tl.num_programs(0) + tl.program_id(0)
    j = tl.arange(0, F)
    tl.store(states + row * (DV * F) + tl.arange(0, DV)[:, None] * F + j[None, :], state)
    tl.store(beside + row * F + j, sums)


@triton.jit
def weights_kernel(
    x, z, w_x, w_z, inverse, beside, eps, T, SPAN, d, f, x_b, x_h, x_t, z_b, z_h, z_t,
    SPANS: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """1 / (eps + sum of weights) of each query."""
    spans, span = tl.num_programs(0), tl.program_id(0)
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    type: tl.constexpr = x.dtype.element_ty
    map_x, map_z = load_map(w_x, h, d, f, 1.0, D, F, type), load_map(w_z, h, d, f, 1.0, D, F, type)
    i = tl.arange(0, C)
    up, down = tl.zeros((F,), tl.float32), tl.zeros((F,), tl.float32)
    if SPANS:
        beside += sequence() * spans * (2 * F) + tl.arange(0, F)
        up = add_spans(up, beside, spans, span, 2 * F, False)
        down = add_spans(down, beside + F, spans, span, 2 * F, False)
    for step in tl.range(0, tl.cdiv(tl.minimum(T - span * SPAN, SPAN), C), disable_licm=True):
        t = span * SPAN + step * C + i
        at = tl.minimum(t, T - 1)
        z_up, z_down = halves(
            load_rows(z + b * z_b + h * z_h, at, T, z_t, d, D, True), map_z, i, f, WHOLE, False, PRECISION
        )
        x_up, x_down = halves(
            load_rows(x + b * x_b + h * x_h, at, T, x_t, d, D, True), map_x, i, f, WHOLE, False, PRECISION
        )
        p = tl.dot(x_up, tl.trans(z_up), input_precision=PRECISION)
        p = tl.dot(x_down, tl.trans(z_down), p, input_precision=PRECISION)
        total = tl.sum(tl.where(i[:, None] >= i[None, :], p, 0.0), 1)
        total += tl.sum(x_up.to(tl.float32) * up[None, :] + x_down.to(tl.float32) * down[None, :], 1)
        tl.store(inverse + sequence() * T + t, 1 / (total + eps), mask=t < T)
        up += tl.sum(z_up.to(tl.float32), 0)
        down += tl.sum(z_down.to(tl.float32), 0)


@triton.jit
def values_kernel(
    x, z, c, w_x, w_z, out, inverse, states, T, SPAN, d, dv, f,
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
    up, down = tl.zeros((BN, F), tl.float32), tl.zeros((BN, F), tl.float32)
    if SPANS:
        j, n = tl.arange(0, F), tl.arange(0, BN)[:, None]
        states += sequence() * spans * (2 * DV * F) + (column + n) * F + j[None, :]
        up = add_spans(up, states, spans, span, 2 * DV * F, REVERSE)
        down = add_spans(down, states + DV * F, spans, span, 2 * DV * F, REVERSE)
    chunks = tl.cdiv(tl.minimum(T - low, SPAN), C)
    for step in tl.range(0, chunks, disable_licm=True):
        t = low + (chunks - 1 - step if REVERSE else step) * C + i
        at = tl.minimum(t, T - 1)
        r = weight_of(inverse + sequence() * T, t, T, NORMALIZE)
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
        acc = tl.dot(x_up, tl.trans(up).to(type), acc, input_precision=PRECISION)
        acc = tl.dot(x_down, tl.trans(down).to(type), acc, input_precision=PRECISION)
        if not REVERSE:
            acc *= r[:, None]
        # tokens beyond T are in the last chunk, whose state nobody reads; with REVERSE they weigh nothing
        up = tl.dot(tl.trans(value), z_up, up, input_precision=PRECISION)
        down = tl.dot(tl.trans(value), z_down, down, input_precision=PRECISION)
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
        if REVERSE:
            phi *= weight_of(inverse + sequence() * T, t, T, NORMALIZE)[:, None]
        phi = phi.to(type)
        # one tile after the other: each is in registers until it is in a product
        rows = load_rows(a + b * a_b + h * a_h, at, T, a_t, dv, DV, True)
        d_phi = tl.dot(rows, state.to(type), input_precision=PRECISION)
        if NORMALIZE:
            m = tl.load(delta + sequence() * T + t, mask=t < T, other=0.0)
            d_phi = add_beside(d_phi, 0 * m + 1 if REVERSE else m, sums, type, PRECISION)
            beside_phi = columns(m if REVERSE else 0 * m + 1).to(type)
            sums = tl.dot(tl.trans(phi), beside_phi, sums, input_precision=PRECISION)
        value = load_rows(c + b * c_b + h * c_h, at, T, c_t, dv, DV, True)
        slope = tl.dot(rows, tl.trans(value), input_precision=PRECISION)
        if NORMALIZE:
            slope += over_columns(m, type, PRECISION) if REVERSE else m[:, None]
        slope = tl.where((i[:, None] <= i[None, :]) if REVERSE else (i[:, None] >= i[None, :]), slope, 0.0)
        d_phi = tl.dot(slope.to(type), phi, d_phi, input_precision=PRECISION)
        state = tl.dot(tl.trans(value), phi, state, input_precision=PRECISION)
        head = load_rows(x + b * x_b + h * x_h, at, T, x_t, d, D, True)
        d_map = through_softmax(half(head, map_x, f, WHOLE, PRECISION), d_phi)
        if not REVERSE:
            d_map *= weight_of(inverse + sequence() * T, t, T, NORMALIZE)[:, None]
        d_head = tl.dot(d_map.to(type), tl.trans(map_x), input_precision=PRECISION)
        store_rows(out + which.to(tl.int64) * o_half + b * o_b + h * o_h, t, T, o_t, d, d_head)
        share = partial + (sequence() * tl.num_programs(0) + tl.program_id(0)) * (D * F)
        add_share(share, tl.trans(head), d_map, step, PRECISION)


def fits(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether the state, and what a chunk of heads holds beside it, fit into registers. Not fp32, whose products take
    three times as long as reading features does, nor fp16, whose products need scales: both were slower."""
    return q.dtype == torch.bfloat16 and max(q.shape[3], v.shape[3]) <= 128 and w.shape[2] <= 64


def tiling(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> dict:
    """Four warps have each a row of matrix units' tiles in 64 tokens. Not with fewer than 64 columns of values: Triton
    3.6's code is wrong there."""
    features = bucket(w.shape[2])
    sizes = {"C": 64 if width(v) == 64 else 32, "D": bucket(q.shape[3]), "DV": bucket(v.shape[3]), "F": features}
    # left to itself the assembler aims at fewer registers and spills a few
    schedule = {"num_warps": 4, "num_stages": 1, "maxnreg": 255}
    return sizes | schedule | {"WHOLE": w.shape[2] == features, "PRECISION": precision(q.dtype)}


def width(v: torch.Tensor) -> int:
    """Columns of y, or of dv, that one program has."""
    return bucket(v.shape[3], 16, 64)


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

    def weights(self, eps: float) -> None:
        """Writes `inverse`."""
        length, span, d, _, f = self.sizes
        others = {name: value for name, value in self.options.items() if name not in ("DV", "REVERSE", "NORMALIZE")}
        weights_kernel[grid(self.count, self.heads, self.batch)](
            self.x, self.z, self.w_x, self.w_z, self.inverse, self.beside, eps, length, span, d, f,
            *strides(self.x, self.z), **others | {"C": 32},
        )  # fmt: skip

    def values(self, out) -> None:
        columns = width(out)
        programs = grid(self.count * triton.cdiv(out.shape[3], columns), self.heads, self.batch)
        values_kernel[programs](
            self.x, self.z, self.c, self.w_x, self.w_z, out, self.inverse, self.states, *self.sizes,
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
    walks = Walks(q, k, v, w_q, w_k, inverse, inverse, False, normalize)
    if normalize:
        walks.weights(eps)
    walks.values(y)


def backward(q, k, v, w_q, w_k, y, inverse, dy, dq, dk, dv, normalize: bool) -> torch.Tensor:
    """Writes dq, dk, dv; returns dW of queries and keys, (2, H, d, f), fp32."""
    delta = sum_gradient(dy, y, normalize)
    dw_q = Walks(q, k, v, w_q, w_k, inverse, delta, False, normalize).gradients(dy, dq)
    walks = Walks(k, q, dy, w_k, w_q, inverse, delta, True, normalize)
    walks.values(dv)
    return torch.stack([dw_q, walks.gradients(v, dk)])
