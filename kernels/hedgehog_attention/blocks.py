"""A block of queries meets a block of keys: what is read of each, the weights between them and the weights' gradients.

A weight is the exponential of a product of heads inside the window and a product of features before it; without a
window it is always the latter, and heads are not read.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.tiles import load_rows


@triton.jit
def mixture(mix, H, WINDOW: tl.constexpr):
    """What weighs exponentials and products of features, of a program's head."""
    a = 1.0
    b = 1.0
    if WINDOW:
        a = tl.load(mix + tl.program_id(1))
        b = tl.load(mix + H + tl.program_id(1))
    return a, b


@triton.jit
def both_rows(phi, x, row, t, T, f, d, WINDOW: tl.constexpr, F: tl.constexpr, D: tl.constexpr):
    """Tokens t's features and heads; the features twice without a window."""
    mapped = load_rows(phi + row * f, t, T, f, f, F)
    head = mapped
    if WINDOW:
        head = load_rows(x + row * d, t, T, d, d, D)
    return mapped, head


@triton.jit
def descending_rows(
    phi_q, q, dy, delta, inverse, highest, row, m, T, f, d, dv,
    WINDOW: tl.constexpr, NORMALIZE: tl.constexpr, F: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """Of queries m, what the backward pass reads: features, heads, gradients, delta, 1 / (eps + sum of weights), the
    largest exponents."""
    map_q, query = both_rows(phi_q, q, row, m, T, f, d, WINDOW, F, D)
    gradient = load_rows(dy + row * dv, m, T, dv, dv, DV)
    less = tl.zeros(m.shape, tl.float32)
    r = tl.full(m.shape, 1.0, tl.float32)
    if NORMALIZE:
        less = tl.load(delta + row + m, mask=m < T, other=0.0)
        r = tl.load(inverse + row + m, mask=m < T, other=0.0)
    top = tl.zeros(m.shape, tl.float32)
    if WINDOW:
        top = tl.load(highest + row + m, mask=m < T, other=0.0)
    return map_q, query, gradient, less, r, top


@triton.jit
def near(m, n, window):
    """Whether keys n are in the windows of queries m."""
    return (n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window)


@triton.jit
def far(m, n, T, window, WINDOW: tl.constexpr):
    """Whether they are before those; without a window, whether they are seen at all."""
    seen = (n[None, :] <= m[:, None]) & (m[:, None] < T)
    if WINDOW:
        seen = seen & ~near(m, n, window)
    return seen


@triton.jit
def weights(query, key, map_q, map_k, m, n, T, window, highest, scale, a, b,
            WINDOW: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Of queries m for keys n: the weights, the exponentials (zero outside the window), the products of features."""
    causal = (n[None, :] <= m[:, None]) & (m[:, None] < T)
    product = tl.where(causal, tl.dot(map_q, tl.trans(map_k), input_precision=PRECISION), 0.0)
    exponential = tl.zeros_like(product)
    weight = product
    if WINDOW:
        inside = near(m, n, window) & causal
        s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        exponential = tl.exp(tl.where(inside, s - highest[:, None], float("-inf")))
        product = tl.where(inside, 0.0, product)
        weight = a * exponential + b * product
    return weight, exponential, product


@triton.jit
def slopes(gradient, value, less, r, m, n, T, window, b, WINDOW: tl.constexpr, PRECISION: tl.constexpr):
    """The gradients of the weights, and those of the products of features."""
    slope = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
    slope = (slope + less[:, None]) * r[:, None]
    return slope, tl.where(far(m, n, T, window, WINDOW), slope * b, 0.0)
