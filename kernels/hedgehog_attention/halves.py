"""What `wide` is made of: features as two halves, products that round within fp16's range, a state's parts.

phi(x) is the softmax of y = x W and that of -y. They stay two tiles: products of features are sums over the two, and
the gradient of one is that of the other with -W for W. Products add to an accumulator that they are given: an
accumulator of their own would cost as many registers again.

The normaliser is one more column of values. As 16 equal ones it takes a product on matrix units; as a vector along the
columns of a tile of features it would take as many registers as a row of it.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.tiles import LOG2E


@triton.jit
def load_map(w, h, d, f, sign, D: tl.constexpr, F: tl.constexpr, dtype: tl.constexpr):
    """W of a head times sign, (D, F), zeros outside of (d, f)."""
    c, j = tl.arange(0, D)[:, None], tl.arange(0, F)[None, :]
    return (tl.load(w + h * d * f + c * f + j, mask=(c < d) & (j < f), other=0.0) * sign).to(dtype)


@triton.jit
def _softmax(y, f, WHOLE: tl.constexpr):
    if not WHOLE:
        y = tl.where(tl.arange(0, y.shape[1])[None, :] < f, y, float("-inf"))
    e = tl.exp2(y - tl.max(y, 1)[:, None])
    return e * (1 / tl.sum(e, 1))[:, None]


@triton.jit
def half(x, weight, f, WHOLE: tl.constexpr, PRECISION: tl.constexpr):
    """A half of phi of the rows of x, fp32 (rows, F), zeros in columns from f on. WHOLE: there are none."""
    return _softmax(tl.dot(x, weight, input_precision=PRECISION) * LOG2E, f, WHOLE)


@triton.jit
def halves(x, weight, r, f, WHOLE: tl.constexpr, WEIGH: tl.constexpr, PRECISION: tl.constexpr):
    """Both, as x is rounded; WEIGH: times r of each row."""
    y = tl.dot(x, weight, input_precision=PRECISION) * LOG2E
    up, down = _softmax(y, f, WHOLE), _softmax(-y, f, WHOLE)
    if WEIGH:
        up *= r[:, None]
        down *= r[:, None]
    return up.to(x.dtype), down.to(x.dtype)


@triton.jit
def through_softmax(phi, gradient):
    """The gradient of x W from that of a half of phi."""
    product = phi * gradient
    return product - phi * tl.sum(product, 1)[:, None]


@triton.jit
def largest(x):
    """By which fp16 divides before it rounds."""
    return tl.maximum(tl.max(tl.abs(x)), 1e-20)


@triton.jit
def add_product(acc, a, b, scale, SCALED: tl.constexpr, PRECISION: tl.constexpr):
    """acc + scale a @ b. SCALED: whether scale is more than 1."""
    if SCALED:
        return tl.dot(a, b, acc * (1 / scale), input_precision=PRECISION) * scale
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def add_left(acc, p, c, PRECISION: tl.constexpr):
    """acc + p @ c with p rounded to c's type, in fp16 after a division of each row by its largest."""
    if c.dtype == tl.float16:
        size = tl.maximum(tl.max(tl.abs(p), 1), 1e-20)[:, None]
        return tl.dot((p / size).to(c.dtype), c, acc / size) * size
    else:
        return tl.dot(p.to(c.dtype), c, acc, input_precision=PRECISION)


@triton.jit
def add_right(acc, a, b, PRECISION: tl.constexpr):
    """acc + a @ b with b rounded to a's type, in fp16 after a division by its largest."""
    if a.dtype == tl.float16:
        size = largest(b)
        return tl.dot(a, (b / size).to(a.dtype), acc / size) * size
    else:
        return tl.dot(a, b.to(a.dtype), acc, input_precision=PRECISION)


@triton.jit
def weight_of(inverse, t, T, dtype: tl.constexpr, REVERSE: tl.constexpr, NORMALIZE: tl.constexpr):
    """1 / (eps + sum of weights) of tokens t, or 1; beyond T 0. REVERSE: where fp16 rounds features times it, over a
    scale that comes second, else 1."""
    scale = 1.0
    if NORMALIZE:
        r = tl.load(inverse + t, mask=t < T, other=0.0)
        if REVERSE and dtype == tl.float16:
            scale = largest(r)
            r /= scale
    else:
        r = tl.where(t < T, 1.0, 0.0)
    return r, scale


@triton.jit
def _in_parts(m, dtype: tl.constexpr):
    """m as (rows, 16) of dtype, whose columns add up to 8 m, and a factor: what rounding leaves has columns too."""
    size = 1.0
    if dtype == tl.float16:
        size = largest(m)
    wide = tl.zeros((m.shape[0], 16), tl.float32) + (m / size)[:, None]
    high = wide.to(dtype)
    low = (wide - high.to(tl.float32)).to(dtype)
    return tl.where(tl.arange(0, 16)[None, :] < 8, high, low), size * (1 / 8)


@triton.jit
def over_columns(m, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """(rows, rows), each row m."""
    parts, factor = _in_parts(m, dtype)
    return tl.dot(tl.full((m.shape[0], 16), 1.0, dtype), tl.trans(parts), input_precision=PRECISION) * factor


@triton.jit
def add_beside(acc, m, sums, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """acc + m of each row times sums of features, (F, 16), columns equal."""
    parts, factor = _in_parts(m, dtype)
    if dtype == tl.float16:
        size = largest(sums)
        return add_product(acc, parts, tl.trans((sums / size).to(dtype)), factor * size, True, PRECISION)
    else:
        return tl.dot(parts, tl.trans((sums * (1 / 8)).to(dtype)), acc, input_precision=PRECISION)


@triton.jit
def columns(m, LOW: tl.constexpr, HIGH: tl.constexpr):
    """m of each row in columns LOW ... HIGH - 1 of 16, else zeros."""
    j = tl.arange(0, 16)[None, :]
    return tl.where((j >= LOW) & (j < HIGH), m[:, None], 0.0)


@triton.jit
def add_spans(acc, place, spans, span, step, REVERSE: tl.constexpr):
    """acc + what is at a tile of places for the spans before one, with REVERSE after it, step elements apart."""
    for other in range(span + 1 if REVERSE else 0, spans if REVERSE else span):
        acc += tl.load(place + tl.cast(other, tl.int64) * step)
    return acc


@triton.jit
def add_share(partial, a, b, step, PRECISION: tl.constexpr):
    """Adds a @ b to a program's own part of dW, (D, F), which starts from nothing at step 0. In memory: it is as large
    as the state, and both at once would spill."""
    c, j = tl.arange(0, a.shape[0])[:, None], tl.arange(0, b.shape[1])[None, :]
    place = partial + c * b.shape[1] + j
    total = tl.load(place, mask=c + step > c, other=0.0)
    tl.store(place, add_right(total, a, b, PRECISION))
