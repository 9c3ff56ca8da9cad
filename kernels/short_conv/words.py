"""Short convolution of 16-bit data, four tokens a word: a tap one token back then needs no load of its own.

A token's neighbours start at any two bytes, and loads that are not aligned to sixteen bytes are made a token at a time:
that, not memory, bounds the plain kernel (`triton.py`). Here a program loads whole words of four tokens, this one and
the one before, and takes the tokens out by shifts. Up to five taps reach no further.

Where sequences lie behind each other in memory (channel-first storage, as the layers hold it) a channel of a whole
batch is one row; a sequence may then start anywhere in a word.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.activations import activate, slope
from kernels.tiles import bucket

LANES = 4  # tokens of 16 bits a word
WIDEST = LANES + 1  # taps
PROGRAMS = 132 * 16  # of the backward: what fills an H100
WORDS = 512  # a program takes at a time


def words(x: torch.Tensor) -> torch.Tensor | None:
    """x (B, H, L) as int64 rows (outer, H, N / 4), N = L or B L tokens; None where tokens do not lie so."""
    if x.element_size() != 2 or x.shape[-1] < LANES:
        return None
    if x.transpose(0, 1).is_contiguous():
        x = x.transpose(0, 1).flatten(1).unsqueeze(0)
    aligned = x.stride(-1) == 1 and all(n % LANES == 0 for n in (*x.stride()[:2], x.shape[-1], x.storage_offset()))
    return x.view(torch.int64) if aligned and x.data_ptr() % 8 == 0 else None


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
def _position(n, L, LANE: tl.constexpr):
    """Of token LANE of word n in its sequence."""
    p = 4 * n % L + LANE
    return tl.where(p >= L, p - L, p)


@triton.jit
def _convolved(here, before, n, w, L, LANE: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, TYPE: tl.constexpr):
    """sum_j w[K - 1 - j] u[t - j] for token LANE of each word. ROWS: a row holds several sequences."""
    total = tl.zeros(here.shape, tl.float32)
    for j in tl.static_range(K):
        past = _token(here, before, LANE - j, TYPE)
        if ROWS:
            past = tl.where(_position(n, L, LANE) >= j, past, 0.0)
        total += tl.load(w + (K - 1 - j)).to(tl.float32) * past
    return total


@triton.jit
def forward_kernel(
    u, w, bias, dy, y,
    N, L, u_b, u_h, dy_b, dy_h, y_b, y_h,
    K: tl.constexpr, R: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, TYPE: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """y = activation(conv), or where SLOPE the gradient before the activation, dy * activation'(conv). Output h is of
    channel h // R."""
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BW + tl.arange(0, BW)
    row = u + b * u_b + (h // R).to(tl.int64) * u_h + n
    here = tl.load(row, mask=n < N, other=0)
    before = tl.load(row - 1, mask=(n > 0) & (n < N), other=0)
    offset = 0.0
    if BIAS:
        offset = tl.load(bias + h).to(tl.float32)
    if SLOPE:
        gradient = tl.load(dy + b * dy_b + h.to(tl.int64) * dy_h + n, mask=n < N, other=0)
    out = tl.zeros((BW,), tl.int64)
    for i in tl.static_range(4):
        z = _convolved(here, before, n, w + h * K, L, i, K, ROWS, TYPE) + offset
        if SLOPE:
            z = _token(gradient, gradient, i, TYPE) * slope(z, ACTIVATION)
        else:
            z = activate(z, ACTIVATION)
        out |= _place(z, i, TYPE)
    tl.store(y + b * y_b + h.to(tl.int64) * y_h + n, out, mask=n < N)


@triton.jit
def _correlated(
    dz, here, before, n, L, J: tl.constexpr, ROWS: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """sum over a word of dz[t] u[t - J]: dz (R, words) of the outputs of one channel, u (1, words)."""
    total = tl.zeros(dz.shape, tl.float32)
    for i in tl.static_range(4):
        past = _token(here, before, i - J, TYPE)
        if ROWS:
            past = tl.where(_position(n, L, i) >= J, past, 0.0)
        total += _token(dz, dz, i, TYPE) * past
    return total


@triton.jit
def backward_kernel(
    u, w, dz, du, partial,
    B, N, H, L, u_b, u_h, dz_b, dz_h, du_b, du_h,
    K: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, TYPE: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """du of channel h from its R outputs, and this share's sums in partial (shares, H R, K + 1): dw, then dbias."""
    h = tl.program_id(0)
    share = tl.program_id(1)
    r = h * R + tl.arange(0, R)[:, None]  # (R, 1)
    u += h.to(tl.int64) * u_h
    dz += r.to(tl.int64) * dz_h
    du += h.to(tl.int64) * du_h
    tiles = tl.cdiv(N, BW)
    s0 = tl.zeros((R, BW), tl.float32)  # a tap each, its tokens summed once at the end
    s1, s2, s3, s4, total = s0, s0, s0, s0, s0
    for tile in range(share, B * tiles, tl.num_programs(1)):
        b = (tile // tiles).to(tl.int64)
        n = tile % tiles * BW + tl.arange(0, BW)[None, :]  # (1, BW)
        here = tl.load(u + b * u_b + n, mask=n < N, other=0)
        before = tl.load(u + b * u_b + n - 1, mask=(n > 0) & (n < N), other=0)
        gradient = tl.load(dz + b * dz_b + n, mask=n < N, other=0)  # (R, BW)
        after = tl.load(dz + b * dz_b + n + 1, mask=n + 1 < N, other=0)
        out = tl.zeros((1, BW), tl.int64)
        for i in tl.static_range(4):
            x = tl.zeros((R, BW), tl.float32)
            for j in tl.static_range(K):
                ahead = _token(gradient, after, i + j, TYPE)
                if ROWS:
                    ahead = tl.where(_position(n, L, i) + j < L, ahead, 0.0)
                x += tl.load(w + r * K + (K - 1 - j)).to(tl.float32) * ahead
            out |= _place(tl.sum(x, 0)[None, :], i, TYPE)
            total += _token(gradient, gradient, i, TYPE)
        tl.store(du + b * du_b + n, out, mask=n < N)
        s0 += _correlated(gradient, here, before, n, L, 0, ROWS, TYPE)
        if K > 1:
            s1 += _correlated(gradient, here, before, n, L, 1, ROWS, TYPE)
        if K > 2:
            s2 += _correlated(gradient, here, before, n, L, 2, ROWS, TYPE)
        if K > 3:
            s3 += _correlated(gradient, here, before, n, L, 3, ROWS, TYPE)
        if K > 4:
            s4 += _correlated(gradient, here, before, n, L, 4, ROWS, TYPE)
    place = partial + (share * H * R + r) * (K + 1)
    tl.store(place + K, tl.sum(total, 1)[:, None])
    tl.store(place + K - 1, tl.sum(s0, 1)[:, None])
    if K > 1:
        tl.store(place + K - 2, tl.sum(s1, 1)[:, None])
    if K > 2:
        tl.store(place + K - 3, tl.sum(s2, 1)[:, None])
    if K > 3:
        tl.store(place + K - 4, tl.sum(s3, 1)[:, None])
    if K > 4:
        tl.store(place + K - 5, tl.sum(s4, 1)[:, None])


TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def options(u: torch.Tensor, w: torch.Tensor, rows: torch.Tensor, most: int = WORDS) -> dict:
    """A row holds several sequences where it is longer than one."""
    several, repeats = rows.shape[2] * LANES != u.shape[2], w.shape[0] // u.shape[1]
    size = bucket(rows.shape[2], 32, most)
    return {"K": w.shape[1], "R": repeats, "ROWS": several, "TYPE": TYPES[u.dtype], "BW": size}


def rows_of(w: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors as rows of words; none where they cannot be cut alike or the taps reach further than a word."""
    rows = [r for r in map(words, tensors) if r is not None]
    alike = len(rows) == len(tensors) and len({(r.shape[0], r.shape[2]) for r in rows}) == 1
    repeats = w.shape[0] // tensors[0].shape[1]
    return rows if alike and w.shape[1] <= WIDEST and repeats in (1, 2, 4) else []


def forward(u, w, bias, dy, y: torch.Tensor, activation: str) -> bool:
    """Into y the convolution, or with dy the gradient before the activation; False where words do not fit."""
    rows = rows_of(w, u, y, y if dy is None else dy)
    if not rows:
        return False
    x, out, extra = rows
    chosen = options(u, w, x)
    forward_kernel[(triton.cdiv(x.shape[2], chosen["BW"]), out.shape[1], x.shape[0])](
        x, w, bias, extra, out, x.shape[2], u.shape[2], *x.stride()[:2], *extra.stride()[:2], *out.stride()[:2],
        ACTIVATION=activation, SLOPE=dy is not None, BIAS=bias is not None, **chosen,
    )  # fmt: skip
    return True


def backward(u, w, dz) -> tuple[torch.Tensor, torch.Tensor] | None:
    """du, and dw with dbias as one more column (r H, K + 1), fp32; None where words do not fit the tensors."""
    du = torch.empty_like(u)
    rows = rows_of(w, u, dz, du)
    if not rows:
        return None
    x, gradient, out = rows
    chosen = options(u, w, x, WORDS // (w.shape[0] // u.shape[1]))  # as many accumulators
    outer, channels, length = x.shape
    shares = max(1, min(triton.cdiv(PROGRAMS, channels), outer * triton.cdiv(length, chosen["BW"])))
    partial = u.new_empty(shares, w.shape[0], w.shape[1] + 1, dtype=torch.float32)
    backward_kernel[(channels, shares)](
        x, w, gradient, out, partial, outer, length, channels, u.shape[2],
        *x.stride()[:2], *gradient.stride()[:2], *out.stride()[:2], **chosen,
    )  # fmt: skip
    return du, partial.sum(0)
