"""A block of queries meets a block of keys: what is read of each, the weights between them and the weights' gradients.

A weight is the exponential of a product of heads inside the window and a product of features before it.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.tiles import load_rows


@triton.jit
def mixture(mix, H):
    """What weighs exponentials and products of features, of a program's head."""
    return tl.load(mix + tl.program_id(1)), tl.load(mix + H + tl.program_id(1))


@triton.jit
def both_rows(phi, x, row, t, T, f, d, F: tl.constexpr, D: tl.constexpr):
    """Tokens t's features and heads."""
    return load_rows(phi + row * f, t, T, f, f, F), load_rows(x + row * d, t, T, d, d, D)


@triton.jit
def descending_rows(
    phi_q, q, dy, delta, inverse, highest, row, m, T, f, d, dv,
    NORMALIZE: tl.constexpr, F: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """Of queries m, what the backward pass reads: features, heads, gradients, delta, 1 / (eps + sum of weights), the
    largest exponents."""
    map_q, query = both_rows(phi_q, q, row, m, T, f, d, F, D)
    gradient = load_rows(dy + row * dv, m, T, dv, dv, DV)
    less = tl.zeros(m.shape, tl.float32)
    r = tl.full(m.shape, 1.0, tl.float32)
    if NORMALIZE:
        less = tl.load(delta + row + m, mask=m < T, other=0.0)
        r = tl.load(inverse + row + m, mask=m < T, other=0.0)
    top = tl.load(highest + row + m, mask=m < T, other=0.0)
    return map_q, query, gradient, less, r, top


@triton.jit
def near(m, n, window):
    """Whether keys n are in the windows of queries m."""
    return (n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window)


@triton.jit
def weights(query, key, map_q, map_k, m, n, T, window, highest, scale, a, b, PRECISION: tl.constexpr):
    """Of queries m for keys n: the weights, the exponentials (zero outside the window), the products of features."""
    causal = (n[None, :] <= m[:, None]) & (m[:, None] < T)
    inside = near(m, n, window) & causal
    product = tl.dot(map_q, tl.trans(map_k), input_precision=PRECISION)
    product = tl.where(causal & ~inside, product, 0.0)
    s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    exponential = tl.exp(tl.where(inside, s - highest[:, None], float("-inf")))
    return a * exponential + b * product, exponential, product


@triton.jit
def slopes(gradient, value, less, r, m, n, T, window, b, PRECISION: tl.constexpr):
    """The gradients of the weights, and those of the products of features."""
    slope = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
    slope = (slope + less[:, None]) * r[:, None]
    far = (n[None, :] <= m[:, None]) & (m[:, None] < T) & ~near(m, n, window)
    return slope, tl.where(far, slope * b, 0.0)
