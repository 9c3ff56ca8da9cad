"""Short convolution of 16-bit data, four tokens a word: a tap one token back then needs no load of its own.

A token's neighbours start at any two bytes, and loads that are not aligned to sixteen bytes are made a token at a time:
that, not memory, bounds the plain kernel (`triton.py`). Here a program loads whole words of four tokens, this one and
the one before, and takes the tokens out by shifts. Up to five taps reach no further.

Where sequences lie behind each other in memory (channel-first storage, as the layers hold it) a channel of a whole
batch is one row. Sequences of a multiple of four tokens then begin with a word, whose word before counts as zeros;
others begin anywhere in a word, and their tokens are looked at one by one.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.activations import activate, slope
from kernels.short_conv.reference import STREAMS
from kernels.tiles import MOST, bucket, sum_shares

LANES = 4  # tokens of 16 bits a word
WIDEST = LANES + 1  # taps
PROGRAMS = 132 * 16  # of the backward: what fills an H100
ALONE, ALIGNED, ANYWHERE = (tl.constexpr(n) for n in range(3))  # sequences in a row: one; beginning with words; or not
WORDS = 512  # a program takes at a time
REPEATS = (1, 2, 4)  # outputs of a channel that a program can have


def words(x: torch.Tensor) -> torch.Tensor | None:
    """x (B, H, L) as int64 rows (outer, H, N / 4), N = L or B L tokens; None where tokens do not lie so,
    or are too many to count in 32 bits."""
    if x.element_size() != 2 or x.shape[-1] < LANES:
        return None
    if x.transpose(0, 1).is_contiguous():
        x = x.transpose(0, 1).flatten(1).unsqueeze(0)
    aligned = all(n % LANES == 0 for n in (*x.stride()[:2], x.shape[-1], x.storage_offset())) and x.data_ptr() % 8 == 0
    return x.view(torch.int64) if aligned and x.stride(-1) == 1 and x.shape[-1] < 1 << 31 else None


@triton.jit
def _token(here, other, LANE: tl.constexpr, TYPE: tl.constexpr):
    """Token LANE of a word, in fp32; below 0 or from 4 on it lies in the other word, the one before or after."""
    word = here
    if LANE < 0 or LANE > 3:
        word = other
    bits = (word >> (16 * (LANE % 4))).to(tl.int16)
    return bits.to(TYPE, bitcast=True).to(tl.float32)


@triton.jit
def _place(value, LANE: tl.constexpr, TYPE: tl.constexpr):
    """A word with `value` as token LANE, else zeros."""
    bits = value.to(TYPE).to(tl.int16, bitcast=True).to(tl.int64)
    return (bits & 0xFFFF) << (16 * LANE)


@triton.jit
def _ends(n, N, L, ROWS: tl.constexpr):
    """Whether word n has one before and one after it, in its sequence or, beginning anywhere, in its row."""
    if ROWS == ALIGNED:
        place, length = n % (L // 4), L // 4
    else:
        place, length = n, N
    return (place > 0) & (n < N), (place + 1 < length) & (n + 1 < N)


@triton.jit
def _position(n, L, LANE: tl.constexpr):
    """Of token LANE of word n in its sequence."""
    p = 4 * n % L + LANE
    return tl.where(p >= L, p - L, p)


@triton.jit
def _past(
    here, before, added, follows, n, L,
    LANE: tl.constexpr, J: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The token J before token LANE of each word, where ADD plus `added`; zeros before the sequence: the word before
    counts where this one `follows` it."""
    past = _token(here, before, LANE - J, TYPE)
    if ADD:
        if LANE >= J:
            past += added
        else:
            past += tl.where(follows, added, 0.0)
    if ROWS == ANYWHERE:
        past = tl.where(_position(n, L, LANE) >= J, past, 0.0)
    return past


@triton.jit
def forward_kernel(
    u, w, bias, input_bias, dy, y0, y1, y2,
    N, H, C, L, FIRST, u_b, u_h, dy_b, dy_h, y_b, y_h,
    R: tl.constexpr, STREAMS: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, TYPE: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """y = activation(conv), or where SLOPE the gradient before the activation, dy * activation'(conv). A program has
    outputs h + r H, r < R, which read channel (FIRST + h) mod H; the streams are of C of them each."""
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BW + tl.arange(0, BW)
    channel = (FIRST + h) % H
    row = u + b * u_b + channel.to(tl.int64) * u_h + n
    follows, _ = _ends(n, N, L, ROWS)
    added = 0.0
    if ADD:
        added = tl.load(input_bias + channel).to(tl.float32)
    here = tl.load(row, mask=n < N, other=0)
    before = tl.load(row - 1, mask=follows, other=0)
    for r in tl.static_range(R):
        output = (h + r * H).to(tl.int64)
        offset = 0.0
        if BIAS:
            offset = tl.load(bias + output).to(tl.float32)
        if SLOPE:
            gradient = tl.load(dy + b * dy_b + output * dy_h + n, mask=n < N, other=0)
        out = tl.zeros((BW,), tl.int64)
        for i in tl.static_range(4):
            z = tl.zeros((BW,), tl.float32) + offset
            for j in tl.static_range(K):
                tap = tl.load(w + output * K + (K - 1 - j)).to(tl.float32)
                z += tap * _past(here, before, added, follows, n, L, i, j, ADD, ROWS, TYPE)
            if SLOPE:
                z = _token(gradient, gradient, i, TYPE) * slope(z, ACTIVATION)
            else:
                z = activate(z, ACTIVATION)
            out |= _place(z, i, TYPE)
        y = y0 + output * y_h
        if STREAMS > 1 and output >= C:
            y = y1 + (output - C) * y_h
        if STREAMS > 2 and output >= 2 * C:
            y = y2 + (output - 2 * C) * y_h
        tl.store(y + b * y_b + n, out, mask=n < N)


@triton.jit
def backward_kernel(
    u, w, input_bias, dz0, dz1, dz2, du, partial,
    B, N, H, C, L, u_b, u_h, dz_b, dz_h, du_b, du_h,
    K: tl.constexpr, R: tl.constexpr, STREAMS: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr,
    TYPE: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """du of channel h from its outputs h + r H, and this share's sums in a row of partial: dw (R H, K), dbias (R H),
    and where ADD that of input_bias (H).

    A thread has the same words of all outputs: what they add to du meets in its registers.
    """
    h = tl.program_id(0).to(tl.int64)
    share = tl.program_id(1)
    u += h * u_h
    du += h * du_h
    tiles = tl.cdiv(N, BW)
    zero = tl.zeros((BW,), tl.float32)
    taps, gradients = (), ()
    for r in tl.static_range(R):
        output = h + r * H
        for c in tl.static_range(K):
            taps += (tl.load(w + output * K + c).to(tl.float32),)
        dz = dz0 + output * dz_h
        if STREAMS > 1 and output >= C:
            dz = dz1 + (output - C) * dz_h
        if STREAMS > 2 and output >= 2 * C:
            dz = dz2 + (output - 2 * C) * dz_h
        gradients += (dz,)
    added = 0.0
    if ADD:
        added = tl.load(input_bias + h).to(tl.float32)
    sum_u, sums = zero, ()  # of output r: K taps, the newest last, and the bias; tokens are summed once at the end
    for _ in tl.static_range(R * (K + 1)):
        sums += (zero,)
    for tile in range(share, B * tiles, tl.num_programs(1)):
        b = (tile // tiles).to(tl.int64)
        n = tile % tiles * BW + tl.arange(0, BW)
        follows, precedes = _ends(n, N, L, ROWS)
        here = tl.load(u + b * u_b + n, mask=n < N, other=0)
        before = tl.load(u + b * u_b + n - 1, mask=follows, other=0)
        x0, x1, x2, x3 = zero, zero, zero, zero
        new = ()
        for r in tl.static_range(R):
            gradient = tl.load(gradients[r] + b * dz_b + n, mask=n < N, other=0)
            after = tl.load(gradients[r] + b * dz_b + n + 1, mask=precedes, other=0)
            x0 += _ahead(gradient, after, taps, n, L, 0, r * K, K, ROWS, TYPE)
            x1 += _ahead(gradient, after, taps, n, L, 1, r * K, K, ROWS, TYPE)
            x2 += _ahead(gradient, after, taps, n, L, 2, r * K, K, ROWS, TYPE)
            x3 += _ahead(gradient, after, taps, n, L, 3, r * K, K, ROWS, TYPE)
            for c in tl.static_range(K):
                total = sums[r * (K + 1) + c]
                for i in tl.static_range(4):
                    past = _past(here, before, added, follows, n, L, i, K - 1 - c, ADD, ROWS, TYPE)
                    total += _token(gradient, gradient, i, TYPE) * past
                new += (total,)
            total = sums[r * (K + 1) + K]
            for i in tl.static_range(4):
                total += _token(gradient, gradient, i, TYPE)
            new += (total,)
        sums = new
        if ADD:
            sum_u += x0 + x1 + x2 + x3
        out = _place(x0, 0, TYPE) | _place(x1, 1, TYPE) | _place(x2, 2, TYPE) | _place(x3, 3, TYPE)
        tl.store(du + b * du_b + n, out, mask=n < N)
    partial += share * H * (R * (K + 1) + ADD)
    for r in tl.static_range(R):
        output = tl.program_id(0) + r * H
        for c in tl.static_range(K):
            tl.store(partial + output * K + c, tl.sum(sums[r * (K + 1) + c], 0))
        tl.store(partial + R * H * K + output, tl.sum(sums[r * (K + 1) + K], 0))
    if ADD:
        tl.store(partial + R * H * (K + 1) + tl.program_id(0), tl.sum(sum_u, 0))


@triton.jit
def _ahead(
    gradient, after, taps, n, L,
    LANE: tl.constexpr, FIRST: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """sum_j taps[FIRST + K - 1 - j] dz[t + j] for token LANE of each word."""
    total = tl.zeros(gradient.shape, tl.float32)
    for j in tl.static_range(K):
        ahead = _token(gradient, after, LANE + j, TYPE)
        if ROWS == ANYWHERE:
            ahead = tl.where(_position(n, L, LANE) + j < L, ahead, 0.0)
        total += taps[FIRST + K - 1 - j] * ahead
    return total


TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def options(u: torch.Tensor, w: torch.Tensor, rows: torch.Tensor, most: int = WORDS) -> dict:
    """A row holds several sequences where it is longer than one."""
    length = u.shape[2]
    several = ANYWHERE if length % LANES else ALIGNED
    places = ALONE if rows.shape[2] * LANES == length else several
    size = bucket(rows.shape[2], 32, most)
    return {"K": w.shape[1], "ROWS": places.value, "TYPE": TYPES[u.dtype], "BW": size}


def rows_of(w: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors as rows of words; none where they cannot be cut alike or the taps reach further than a word."""
    rows = [r for r in map(words, tensors) if r is not None]
    alike = len(rows) == len(tensors) and len({(r.shape[0], r.shape[2]) for r in rows}) == 1
    return rows if alike and w.shape[1] <= WIDEST else []


def padded(streams: list[torch.Tensor]) -> list[torch.Tensor]:
    """As many tensors as the kernels take; the last ones are not looked at."""
    return streams + streams[:1] * (STREAMS - len(streams))


def sums_of(w: torch.Tensor, input_bias: torch.Tensor | None) -> int:
    """How many numbers dw (r H, K), dbias (r H,) and, where there is one, input_bias's gradient (H,) are."""
    return w.shape[0] * (w.shape[1] + 1) + (0 if input_bias is None else len(input_bias))


def forward(u, w, bias, input_bias, dy, ys: list[torch.Tensor], first: int, activation: str) -> bool:
    """Into ys, the streams, the convolution, or with dy the gradient before the activation, of one of them; False where
    words do not fit. Of several streams, or several outputs a channel, all are computed by one launch."""
    channels, outputs = u.shape[1], w.shape[0]
    repeats = outputs // channels if outputs % channels == 0 and first == 0 else 1
    if repeats not in REPEATS and len(ys) == 1:
        repeats = 1  # a program for each output
    rows = rows_of(w, u, *ys, *([] if dy is None else [dy])) if repeats in REPEATS else []
    if not rows or rows[0].shape[0] > MOST:  # the plain kernel has the batch on the grid's first axis
        return False
    x, out = rows[:2]
    extra = rows[-1]
    chosen = options(u, w, x)
    forward_kernel[(triton.cdiv(x.shape[2], chosen["BW"]), outputs // repeats, x.shape[0])](
        x, w, bias, input_bias, extra, *padded(rows[1 : 1 + len(ys)]),
        x.shape[2], channels, ys[0].shape[1], u.shape[2], first,
        *x.stride()[:2], *extra.stride()[:2], *out.stride()[:2], R=repeats, STREAMS=len(ys),
        ACTIVATION=activation, SLOPE=dy is not None, BIAS=bias is not None, ADD=input_bias is not None, **chosen,
    )  # fmt: skip
    return True


def backward(u, w, input_bias, dz: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """du, and in one row dw (r H, K), dbias (r H,) and, where there is an input_bias, its gradient (H,), fp32; None
    where words do not fit the tensors. `dz`: of the streams, of the same strides."""
    du, repeats = torch.empty_like(u), w.shape[0] // u.shape[1]
    rows = rows_of(w, u, du, *dz) if repeats in REPEATS else []
    if not rows:
        return None
    x, out, *gradients = rows
    chosen = options(u, w, x, WORDS // repeats)  # as many accumulators
    outer, channels, length = x.shape
    shares = max(1, min(triton.cdiv(PROGRAMS, channels), outer * triton.cdiv(length, chosen["BW"])))
    partial = u.new_empty(shares, sums_of(w, input_bias), dtype=torch.float32)
    backward_kernel[(channels, shares)](
        x, w, input_bias, *padded(gradients), out, partial, outer, length, channels, dz[0].shape[1], u.shape[2],
        *x.stride()[:2], *gradients[0].stride()[:2], *out.stride()[:2], R=repeats, STREAMS=len(dz),
        ADD=input_bias is not None, **chosen,
    )  # fmt: skip
    return du, sum_shares(partial)
