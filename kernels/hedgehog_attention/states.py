"""Tokens beyond every window of a block, by a state: sum phi_k^T v before its queries, sum phi_q^T dy / (eps + sum of
weights) after its keys.

Linear attention's scan leaves one for each chunk of 64 tokens. A whole state is too large for the registers beside a
block's tiles, so products with it go through it some features, or some columns, at a time.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.linear_attention.sums import scaled_right_product, scan


@triton.jit
def _tile(x, row, column, rows, columns):
    """Of a matrix (rows, columns), zeros outside."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(x + row[:, None] * columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def from_features(phi, state, t, T, f, dv, DV: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """phi @ state, rows t of phi (T, f), as (rows, DV)."""
    acc = tl.zeros((t.shape[0], DV), tl.float32)
    for low in range(0, f, BK):
        j = low + tl.arange(0, BK)
        part = _tile(state, j, tl.arange(0, DV), f, dv)
        acc += scaled_right_product(_tile(phi, t, j, T, f), part, PRECISION)
    return acc


@triton.jit
def from_values(x, state, t, T, f, dv, F: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """x @ state^T, rows t of x (T, dv), as (rows, F)."""
    acc = tl.zeros((t.shape[0], F), tl.float32)
    for low in range(0, dv, BK):
        n = low + tl.arange(0, BK)
        part = _tile(state, tl.arange(0, F), n, f, dv)
        acc += scaled_right_product(_tile(x, t, n, T, dv), tl.trans(part), PRECISION)
    return acc


@triton.jit
def load_beside(beside, f, F: tl.constexpr):
    """The normaliser's part of a state, as (1, F)."""
    j = tl.arange(0, F)
    return tl.load(beside + j, mask=j < f, other=0.0)[None, :]


def beyond(a, b, inverse, delta, window: int, normalize: bool, reverse: bool):
    """What each chunk finds, (B H, chunks, 2 f, dv), and the vectors beside; None where no token is beyond a window."""
    older = 0 < window < a.shape[2]
    return scan(a, b, None, inverse, delta, None, None, normalize, reverse) if older else None
