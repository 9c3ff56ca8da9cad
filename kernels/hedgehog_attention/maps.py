"""Hedgehog's feature map within the attention's programs: tiles of q or k become tiles of features, and back.

With V = [W, -W], phi(x) is the two halves' softmaxes of x V: one product, whose columns a reshape parts. Where f is no
power of two, masked columns end each half. dW is the first half of dV minus the second.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.tiles import LOG2E


@triton.jit
def _columns(f, F: tl.constexpr):
    """Of tiles (rows, 2 F): whether a column is in the first half, its place in its half, as (1, 2 F)."""
    j = tl.arange(0, 2 * F)[None, :]
    up = j < F
    return up, tl.where(up, j, j - F)


@triton.jit
def signed(w, h, d, f, D: tl.constexpr, F: tl.constexpr, dtype: tl.constexpr):
    """[W, -W] of a head, (D, 2 F), zeros outside of (d, f) in each half."""
    c = tl.arange(0, D)[:, None]
    up, j = _columns(f, F)
    weight = tl.load(w + h * d * f + c * f + j, mask=(c < d) & (j < f), other=0.0)
    return tl.where(up, weight, -weight).to(dtype)


@triton.jit
def mapped(x, weight, f, F: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr):
    """phi of the rows of x, fp32, (rows, 2 F), zeros in columns from f on in each half. WHOLE: there are none."""
    y = tl.dot(x, weight, input_precision=PRECISION) * LOG2E
    y = tl.reshape(y, (x.shape[0], 2, F))
    if not WHOLE:
        y = tl.where(tl.arange(0, F)[None, None, :] < f, y, float("-inf"))
    e = tl.exp2(y - tl.max(y, 2)[:, :, None])
    return tl.reshape(e * (1 / tl.sum(e, 2))[:, :, None], (x.shape[0], 2 * F))


@triton.jit
def through_softmax(phi, gradient, F: tl.constexpr):
    """The gradient of x V from that of phi."""
    phi = tl.reshape(phi, (phi.shape[0], 2, F))
    product = phi * tl.reshape(gradient, (phi.shape[0], 2, F))
    return tl.reshape(product - phi * tl.sum(product, 2)[:, :, None], (phi.shape[0], 2 * F))


@triton.jit
def store_share(partial, total, side, h, H, d, f, D: tl.constexpr, F: tl.constexpr):
    """A share's dV into partial (shares, halves, 2, H, d, f), the second half negated: dW is the sum of all."""
    c = tl.arange(0, D)[:, None]
    up, j = _columns(f, F)
    half = tl.program_id(1) * 2 + tl.where(up, 0, 1)
    place = partial + ((half * 2 + side).to(tl.int64) * H + h) * d * f + c * f + j
    tl.store(place, tl.where(up, total, -total), mask=(c < d) & (j < f))
