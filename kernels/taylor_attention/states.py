"""The states of Taylor attention that spans of tokens find, and what reads them back: for `spans.py`.

A program walks over the tokens of a head with a block of the state, a tile of values, and writes it, rounded to the
type of the data, where a span begins. Beside the three blocks of features goes what sums of the weights need: before a
token they are a quadratic form of q, of the sums of k k^T and of k; so are the gradients through them, from the end of
the sums of q q^T and of q times the gradient of their sum.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl

from kernels.taylor_attention.features import (
    BF,
    LAST,
    D,
    add_product,
    choices,
    extend,
    extend_last,
    place,
    power,
    rounded,
    weighted_firsts,
)
from kernels.tiles import load_rows

TILE = tl.constexpr(64)  # columns of a state that a program makes


@triton.jit
def scan(
    z, w, inverse, states, sizes, scale, T, d, N, W, z_t, w_t, head, part, tile,
    REVERSE: tl.constexpr, NORMALIZE: tl.constexpr, LAST_PART: tl.constexpr,
    SPAN: tl.constexpr, C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A block of the states of a head, a tile of values: part 0, 1, or with LAST_PART 2."""
    WEIGHTED: tl.constexpr = REVERSE and NORMALIZE
    F: tl.constexpr = LAST if LAST_PART else BF
    i, n = tl.arange(0, C), tile * BN + tl.arange(0, BN)
    state = tl.zeros((BN, LAST) if LAST_PART else (BF, BN), tl.float32)
    spans = tl.cdiv(T, SPAN)
    for step in range(0, spans):
        span = spans - 1 - step if REVERSE else step
        row = head * spans + span
        matrix, size = rounded(tl.trans(state) if LAST_PART else state, states.dtype.element_ty)
        tl.store(place(states, row, n, W, part * 64, F), matrix, mask=(n < W)[None, :])
        if states.dtype.element_ty == tl.float16:
            tl.store(sizes + (row.to(tl.int64) * 3 + part) * tl.cdiv(N, BN) + tile, size)
        for chunk in tl.static_range(0, SPAN, C):
            t = span * SPAN + chunk + i
            x = tl.trans(load_rows(z, t, T, z_t, d, D))
            values = load_rows(w + tile * BN, t, T, w_t, N - tile * BN, BN)
            weight = 1.0
            if WEIGHTED:
                weight = tl.load(inverse + t, mask=t < T, other=0.0)
            if LAST_PART:
                state = extend_last(x, values, state, scale, weight, WEIGHTED)
            else:
                one = weighted_firsts(x, scale, weight, WEIGHTED)
                state = extend(x, values, one, state, part * 64)


@triton.jit
def scan_forms(z, inverse, delta, forms, T, d, z_t, head, REVERSE: tl.constexpr, SPAN: tl.constexpr, C: tl.constexpr):
    """The sums of x x^T (D, D) and of x (D) that the spans of a head find; reversed, x by its sum's gradient."""
    i, e = tl.arange(0, C), tl.arange(0, D)
    squares, singles = tl.zeros((D, D), tl.float32), tl.zeros((D,), tl.float32)
    spans = tl.cdiv(T, SPAN)
    for step in range(0, spans):
        span = spans - 1 - step if REVERSE else step
        form = forms + (head * spans + span).to(tl.int64) * (D * D + D)
        tl.store(form + e[:, None] * D + e[None, :], squares)
        tl.store(form + D * D + e, singles)
        for chunk in tl.static_range(0, SPAN, C):
            t = span * SPAN + chunk + i
            x = load_rows(z, t, T, z_t, d, D)
            wide = tl.trans(x).to(tl.float32)
            if REVERSE:
                slope = tl.load(inverse + t, mask=t < T, other=0.0) * tl.load(delta + t, mask=t < T, other=0.0)
                wide *= slope[None, :]
            squares = add_product(wide, x, squares)
            singles += tl.sum(wide, 1)


@triton.jit
def store_choices(matrices, LOW: tl.constexpr):
    """The matrices that choose columns, (D, 256): the programs that follow are too short to make them anew each."""
    to_one, to_two = choices(LOW, matrices.dtype.element_ty)
    F: tl.constexpr = to_one.shape[1]
    here = matrices + tl.arange(0, D)[:, None] * 256 + tl.arange(0, F)[None, :]
    if LOW == 0:
        tl.store(here, to_one)
    elif LOW == 128:
        tl.store(here + 192, to_one)
    tl.store(here + (224 if LOW == 128 else 64 + LOW), to_two)


@triton.jit
def loaded_choices(matrices, LOW: tl.constexpr):
    F: tl.constexpr = LAST if LOW == 128 else BF
    here = matrices + tl.arange(0, D)[:, None] * 256 + tl.arange(0, F)[None, :]
    return tl.load(here + (192 if LOW == 128 else 0)), tl.load(here + (224 if LOW == 128 else 64 + LOW))


@triton.jit
def states_kernel(
    z, w, inverse, delta, states, sizes, forms, matrices, scale, H, T, d, N, W, z_b, z_h, z_t, w_b, w_h, w_t,
    REVERSE: tl.constexpr, NORMALIZE: tl.constexpr, SPAN: tl.constexpr, C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What the spans find: sums over the tokens before, z = k, w = v; reversed over those after, z = q, w = dy.

    states (B H, spans, 160, W), in fp16 times sizes (B H, spans, 3, tiles); forms (B H, spans, 17, 16). W: dv, rounded
    up so that rows of the states lie at multiples of 16 whatever dv is.
    """
    tiles = tl.cdiv(N, BN)  # those of a head, which read the same, start one after the other
    tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles % (3 + NORMALIZE)
    head = tl.program_id(0) // tiles // (3 + NORMALIZE)
    if tl.program_id(0) == 0:
        store_choices(matrices, 0)
        store_choices(matrices, 64)
        store_choices(matrices, 128)
    z += (head // H).to(tl.int64) * z_b + head % H * z_h
    w += (head // H).to(tl.int64) * w_b + head % H * w_h
    inverse += head.to(tl.int64) * T
    delta += head.to(tl.int64) * T
    if part < 2:
        scan(z, w, inverse, states, sizes, scale, T, d, N, W, z_t, w_t, head, part, tile,
             REVERSE, NORMALIZE, False, SPAN, C, BN)  # fmt: skip
    elif part == 2:
        scan(z, w, inverse, states, sizes, scale, T, d, N, W, z_t, w_t, head, part, tile,
             REVERSE, NORMALIZE, True, SPAN, C, BN)  # fmt: skip
    elif tile == 0:
        scan_forms(z, inverse, delta, forms, T, d, z_t, head, REVERSE, SPAN, C)


@triton.jit
def found(states, sizes, row, tile, n, W, LOW: tl.constexpr):
    """A block of a span's state, columns n from tile on, as `rounded` gives it."""
    F: tl.constexpr = LAST if LOW == 128 else BF
    matrix = tl.load(place(states, row, n, W, LOW, F), mask=(n < W)[None, :], other=0.0)
    if matrix.dtype == tl.float16:
        sizes += (row.to(tl.int64) * 3 + LOW // 64) * tl.cdiv(W, TILE)
        if n.shape[0] <= TILE:
            return matrix, tl.load(sizes + tile // TILE)
        else:
            down, up = power(tl.maximum(tl.load(sizes), tl.load(sizes + 1)))
            return (matrix * (tl.load(sizes + n // TILE) * down)[None, :]).to(tl.float16), up
    else:
        return matrix, 1.0
