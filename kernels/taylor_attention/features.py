"""Second-order features of up to 16 columns as tiles, and the states that they add up to, for chunks of tokens.

Feature f of x is a product of two columns. For f < 128 they are f % 16 and, f // 16 places on, (f + f // 16) % 16: the
first is the same in every block of 64 features. The last block, LAST = 32 features, holds what is left: eight products
of columns eight apart, a constant, seven zeros and the 16 columns themselves.

Products with 0-1 matrices choose the columns, exactly, and leave them in the registers where matrix units want a left
operand: no feature passes through any memory. Features are formed in fp32 and rounded to the type of the data; states
add up in fp32 and are rounded where they are read. fp16's range is narrow: there, rows of a left operand, and a block
of the state as a whole, are first scaled by their largest.

Inner products of features are 1 + x + x^2 / 2 with x = scale q.k by factors that only the features in a state bear.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl

D = tl.constexpr(16)  # columns of queries and keys, zeros beyond their own
BF = tl.constexpr(64)
LAST = tl.constexpr(32)
FEATURES = tl.constexpr(160)  # two blocks of BF, one of LAST: at d = 16, 153 are needed


@triton.jit
def power(largest):
    """What to multiply by so that the largest becomes 1, and its inverse. Multiplying is cheaper than dividing."""
    largest = tl.where(largest > 1e-30, largest, 1.0)
    return 1 / largest, largest


@triton.jit
def add_product(p, values, acc):
    """acc + p @ values, p rounded; in fp16 its rows are scaled."""
    if values.dtype == tl.float16:
        down, up = power(tl.max(tl.abs(p), 1)[:, None])
        return acc + tl.dot((p * down).to(tl.float16), values) * up
    else:
        return tl.dot(p.to(values.dtype), values, acc)


@triton.jit
def add_right_product(values, p, acc):
    """acc + values @ p, p `rounded`."""
    matrix, size = rounded(p, values.dtype)
    if values.dtype == tl.float16:
        return acc + tl.dot(values, matrix) * size
    else:
        return tl.dot(values, matrix, acc)


@triton.jit
def rounded(state, dtype: tl.constexpr):
    """The state in the type of the data, and what it is to be multiplied by: in fp16 it is scaled as a whole."""
    if dtype == tl.float16:
        down, up = power(tl.max(tl.abs(state)))
        return (state * down).to(dtype), up
    else:
        return state.to(dtype), 1.0


@triton.jit
def add_read(p, state, acc):
    """acc + p @ state, p rounded, the state `rounded`."""
    matrix, size = state
    if matrix.dtype == tl.float16:
        return acc + add_product(p, matrix, tl.zeros(acc.shape, tl.float32)) * size
    else:
        return tl.dot(p.to(matrix.dtype), matrix, acc)


@triton.jit
def firsts(F: tl.constexpr, dtype: tl.constexpr):
    """(D, F): x (C, D) @ this is the first column of each feature of a block."""
    f = tl.arange(0, F)[None, :]
    return (tl.arange(0, D)[:, None] == f % D).to(dtype)


@triton.jit
def seconds(low, dtype: tl.constexpr):
    """(D, BF): the same for the second column of the features from low = 0 or 64 on."""
    f = tl.arange(0, BF)[None, :]
    return (tl.arange(0, D)[:, None] == (f + f // D + low // D) % D).to(dtype)


@triton.jit
def lasts(dtype: tl.constexpr):
    """(D, LAST) twice: the same for both columns of the last block; zeros where a column is 1."""
    e, f = tl.arange(0, D)[:, None], tl.arange(0, LAST)[None, :]
    return ((e == f % D) & (f != D // 2)).to(dtype), ((e == f + D // 2) & (f < D // 2)).to(dtype)


@triton.jit
def choices(LOW: tl.constexpr, dtype: tl.constexpr):
    """Both matrices of the features LOW ..."""
    if LOW < 128:
        return firsts(BF, dtype), seconds(LOW, dtype)
    else:
        return lasts(dtype)


@triton.jit
def columns(x, one, choice, LOW: tl.constexpr):
    """Both columns of the features LOW ... of rows x (C, D). one: the first of the blocks before the last."""
    to_one, to_two = choice
    two = tl.dot(x, to_two)
    if LOW == 128:
        f = tl.arange(0, LAST)[None, :]
        one = tl.where(f == D // 2, 1.0, tl.dot(x, to_one))
        two = tl.where((f == D // 2) | (f >= D), 1.0, two)
    return one, two


@triton.jit
def back(change, one, two, acc, choice):
    """acc (C, D), the gradient of rows x, with what comes by that of a block of their features: the product rule."""
    to_one, to_two = choice
    acc = add_product(change * two, tl.trans(to_one), acc)
    return add_product(change * one, tl.trans(to_two), acc)


@triton.jit
def weighted_firsts(x, scale, weight, WEIGHTED: tl.constexpr):
    """The first columns of tokens x (D, C), as (BF, C), with the factor of products of two."""
    one = tl.dot(tl.trans(firsts(BF, x.dtype)), x) * (scale * scale)
    if WEIGHTED:
        one *= weight[None, :]
    return one


@triton.jit
def extend(x, values, one, state, low):
    """A block of the state with tokens x (D, C), values (C, BN), one: `weighted_firsts`."""
    second = tl.trans(seconds(low, x.dtype))
    once = tl.arange(0, BF)[:, None] + low < D  # a square is there once, a product of two twice
    second = tl.where(once, second * 0.5, second).to(x.dtype)
    return add_product(one * tl.dot(second, x), values, state)


@triton.jit
def extend_last(x, values, state, scale, weight, WEIGHTED: tl.constexpr):
    """The last block; it is turned, (BN, LAST), so that it has the rows that matrix units want."""
    one, two = columns(tl.trans(x), 1.0, lasts(x.dtype), 128)
    f = tl.arange(0, LAST)[None, :]
    phi = one * two * tl.where(f == D // 2, 1.0, tl.where(f < D, scale * scale, scale))
    if WEIGHTED:
        phi *= weight[:, None]
    return add_right_product(tl.trans(values), phi, state)


@triton.jit
def place(states, row, n, N, low, F: tl.constexpr):
    """Where features low ... of a span's state are, columns n."""
    f = tl.arange(0, F) + low
    return states + (f[:, None] + row * FEATURES).to(tl.int64) * N + n[None, :]
