"""What `wide` is made of: features as two halves, the normaliser beside them, a state's parts.

phi(x) is the softmax of y = x W and that of -y. They stay two tiles: products of features are sums over the two, and
the gradient of one is that of the other with -W for W. Products add to an accumulator that they are given: an
accumulator of their own would cost as many registers again.

The normaliser's gradient is one more column of values. As 16 equal ones it takes a product on matrix units; as a vector
along the columns of a tile of features it would take as many registers as a row of it.
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
def weight_of(inverse, t, T, NORMALIZE: tl.constexpr):
    """1 / (eps + sum of weights) of tokens t, or 1; beyond T 0."""
    if NORMALIZE:
        return tl.load(inverse + t, mask=t < T, other=0.0)
    else:
        return tl.where(t < T, 1.0, 0.0)


@triton.jit
def _in_parts(m, dtype: tl.constexpr):
    """m as (rows, 16) of dtype, whose columns add up to 8 m: what rounding leaves has columns too."""
    wide = tl.zeros((m.shape[0], 16), tl.float32) + m[:, None]
    high = wide.to(dtype)
    low = (wide - high.to(tl.float32)).to(dtype)
    return tl.where(tl.arange(0, 16)[None, :] < 8, high, low)


@triton.jit
def over_columns(m, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """(rows, rows), each row m."""
    eighth = tl.full((m.shape[0], 16), 1 / 8, dtype)
    return tl.dot(eighth, tl.trans(_in_parts(m, dtype)), input_precision=PRECISION)


@triton.jit
def add_beside(acc, m, sums, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """acc + m of each row times sums of features, (F, 16), columns equal."""
    return tl.dot(_in_parts(m, dtype), tl.trans((sums * (1 / 8)).to(dtype)), acc, input_precision=PRECISION)


@triton.jit
def columns(m):
    """m of each row in 16 columns. By a comparison, as a broadcast is moved to where registers are short."""
    return tl.where(tl.arange(0, 16)[None, :] < 16, m[:, None], 0.0)


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
    tl.store(place, tl.dot(a, b.to(a.dtype), total, input_precision=PRECISION))
