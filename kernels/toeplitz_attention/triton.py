"""Toeplitz attention in Triton: scores and weights exist a tile at a time, in registers.

With w[t, s] = taps[t - s], y and the gradients of q, k and v are one sum over pairs of tokens, out = ((a b^T) * w) c:

    y   a = q   b = k   c = v   s <= t          dq  a = dy  b = v   c = k   s <= t
    dv  a = k   b = q   c = dy  s >= t          dk  a = v   b = dy  c = q   s >= t

so one kernel serves them all. Its tile of w depends on the distance of two blocks alone: a program takes several batch
rows of a head, for which the tile is fetched and laid out once. The gradient of the filter sums (q k^T) * (dy v^T)
over all batch rows and pairs of blocks at one distance, and then along diagonals, a share of the rows a program.
Weights are rounded to the type of the data where they enter a product; sums are fp32.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl

from kernels.fft_conv.toeplitz import halves, store_diagonals
from kernels.linear_attention.sums import scaled_product
from kernels.tiles import bucket, precision

ROWS = 4  # batch rows a program, where there are enough of them to fill a card all the same
PROGRAMS = 528  # that fill a card: four a multiprocessor
SHARES = 32  # at most so many partial sums of the filter's gradient


@triton.jit
def _tile(x, t, e, T, D, x_t, x_d):
    """Tokens t and features e of x, whichever of them is the column; zeros outside."""
    return tl.load(x + t * x_t + e * x_d, mask=(t < T) & (e < D), other=0.0)


@triton.jit
def sum_kernel(
    a, b, c, out, taps,
    B, H, T, K, D, N, blocks,
    a_b, a_h, a_t, a_d, b_b, b_h, b_t, b_d, c_b, c_h, c_t, c_d, out_b, out_h, out_t, out_d,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A block of tokens of `out`, of ROWS batch rows: a, b (B, H, T, D), c, out (B, H, T, N).

    REVERSE: over the tokens after each instead of those before. For those before, the filter comes newest tap last:
    then its tile rises along rows, and is fetched as the product wants it, without conflicts in shared memory.
    """
    place = tl.program_id(0) % blocks
    low = (place if REVERSE else blocks - 1 - place) * BM  # the longest first
    h = (tl.program_id(0) // blocks % H).to(tl.int64)
    row = (tl.program_id(0) // blocks // H).to(tl.int64) * ROWS
    a += h * a_h + row * a_b
    b += h * b_h + row * b_b
    c += h * c_h + row * c_b
    out += h * out_h + row * out_b
    taps += h * K
    i = low + tl.arange(0, BM)[:, None]
    e, n = tl.arange(0, BD), tl.arange(0, BV)[None, :]
    own, acc = (), ()
    for r in tl.static_range(ROWS):
        length = tl.where(row + r < B, T, 0)
        own += (_tile(a + r * a_b, i, e[None, :], length, D, a_t, a_d),)  # (BM, BD)
        acc += (tl.zeros((BM, BV), tl.float32),)
    if REVERSE:
        first, start, end = 0, low, tl.minimum(T, low + BM - 1 + K)
    else:
        first, start, end = K - 1, tl.maximum(low - K + 1, 0) // BN * BN, tl.minimum(T, low + BM)
    for j0 in range(start, end, BN):
        j = j0 + tl.arange(0, BN)
        tap = first + j[None, :] - i
        weight = tl.load(taps + tap, mask=(tap >= 0) & (tap < K), other=0.0)  # (BM, BN)
        new = ()
        for r in tl.static_range(ROWS):
            length = tl.where(row + r < B, T, 0)
            others = _tile(b + r * b_b, j[None, :], e[:, None], length, D, b_t, b_d)  # (BD, BN)
            values = _tile(c + r * c_b, j[:, None], n, length, N, c_t, c_d)  # (BN, BV)
            score = tl.dot(own[r], others, input_precision=PRECISION)
            new += (acc[r] + scaled_product(score * weight, values, PRECISION),)
        acc = new
    for r in tl.static_range(ROWS):
        mask = (i < tl.where(row + r < B, T, 0)) & (n < N)
        tl.store(out + r * out_b + i * out_t + n * out_d, acc[r].to(out.dtype.element_ty), mask=mask)


@triton.jit
def taps_kernel(
    q, k, v, dy, partial,
    B, H, T, D, N, blocks, reach,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, dy_b, dy_h, dy_t, dy_d,
    PRECISION: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The part of the taps' gradient of block distance d, in partial (shares, 4, H, (reach + 1) M)."""
    d = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    share = tl.program_id(2)
    q += h * q_h
    k += h * k_h
    v += h * v_h
    dy += h * dy_h
    e, n = tl.arange(0, BD), tl.arange(0, BV)
    product = tl.zeros((M, M), tl.float32)  # keys by queries: diagonal j - i
    pairs = blocks - d
    for item in range(share, B * pairs, tl.num_programs(2)):
        b = (item // pairs).to(tl.int64)
        i = item % pairs * M + tl.arange(0, M)[:, None]
        j = (item % pairs + d) * M + tl.arange(0, M)[None, :]
        keys = _tile(k + b * k_b, i, e[None, :], T, D, k_t, k_d)  # (M, BD)
        queries = _tile(q + b * q_b, j, e[:, None], T, D, q_t, q_d)  # (BD, M)
        score = tl.dot(keys, queries, input_precision=PRECISION)
        values = _tile(v + b * v_b, i, n[None, :], T, N, v_t, v_d)  # (M, BV)
        slopes = _tile(dy + b * dy_b, j, n[:, None], T, N, dy_t, dy_d)  # (BV, M)
        product += score * tl.dot(values, slopes, input_precision=PRECISION)
    size = H * (reach + 1) * M
    place = partial + share * 4 * size + h * (reach + 1) * M
    top, bottom = halves(product, M, M)
    store_diagonals(top, 0, place, d, reach, size, M)
    store_diagonals(bottom, M // 2, place + 2 * size, d, reach, size, M)


def tiling(batch: int, heads: int, length: int, widest: int, dtype: torch.dtype) -> dict[str, int]:
    """Tokens a block, batch rows a program, warps. fp32 products are three of TF32, whose operands take registers."""
    if dtype == torch.float32:
        block = bucket(length, 16, 32 if widest <= 32 else 16)
        return {"ROWS": 1, "BM": block, "BN": block, "num_warps": 4, "num_stages": 1}
    block = bucket(length, 16, 128)
    enough = widest <= 16 and batch * heads * triton.cdiv(length, block) >= ROWS * PROGRAMS
    rows = {"ROWS": ROWS if enough else 1, "BM": block, "BN": min(block, 32)}
    return rows | {"num_warps": 8 if block == 128 else 4, "num_stages": 3}


def widths(a: torch.Tensor, c: torch.Tensor) -> tuple[int, int]:
    return bucket(a.shape[3], 16, 256), bucket(c.shape[3], 16, 256)


def add_up(a, b, c, out, taps, reverse: bool) -> None:
    """out = ((a b^T) * w) c over the tokens before, or after."""
    batch, heads, length, inner = a.shape
    rows, columns = widths(a, c)
    options = tiling(batch, heads, length, max(rows, columns), a.dtype)
    blocks = triton.cdiv(length, options["BM"])
    sizes = (batch, heads, length, taps.shape[1], inner, c.shape[3], blocks)
    strides = [s for t in (a, b, c, out) for s in t.stride()]
    sum_kernel[(blocks * heads * triton.cdiv(batch, options["ROWS"]),)](
        a, b, c, out, taps, *sizes, *strides,
        REVERSE=reverse, PRECISION=precision(a.dtype), BD=rows, BV=columns, **options,
    )  # fmt: skip


def taps_gradient(q, k, v, dy, taps: int) -> torch.Tensor:
    """(H, taps), fp32."""
    batch, heads, length, inner = q.shape
    rows, columns = widths(q, v)
    widest, fp32 = max(rows, columns), q.dtype == torch.float32
    if fp32:
        size, warps = (32, 4) if widest == 16 else (16, 2)
    else:
        size, warps = bucket(length, 32, 64 if widest <= 32 else 32), 4 if widest == 16 else 8
    blocks = triton.cdiv(length, size)
    reach = min(blocks - 1, (taps + size - 2) // size)  # block distances that the filter touches
    shares = max(1, min(SHARES, batch, triton.cdiv(2 * PROGRAMS, heads * (reach + 1))))
    partial = q.new_empty(shares * 4, heads, (reach + 1) * size, dtype=torch.float32)
    strides = [s for t in (q, k, v, dy) for s in t.stride()]
    taps_kernel[(reach + 1, heads, shares)](
        q, k, v, dy, partial, batch, heads, length, inner, v.shape[3], blocks, reach, *strides,
        PRECISION=precision(q.dtype), M=size, BD=rows, BV=columns, num_warps=warps, num_stages=1 if fp32 else 3,
    )  # fmt: skip
    sums = partial[:, :, :taps].sum(0)
    return torch.nn.functional.pad(sums, (0, taps - sums.shape[1]))  # taps beyond the sequence have no effect


@torch.library.custom_op("mad::toeplitz_attention", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """q, k, v of one type, in any layout; taps fp32, contiguous. y is laid out as v."""
    y = torch.empty_like(v)
    add_up(q, k, v, y, taps.flip(1), False)
    return y


@attend.register_fake
def _(q, k, v, taps):
    return torch.empty_like(v)


@torch.library.custom_op("mad::toeplitz_attention_backward", mutates_args=())
def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    add_up(dy, v, k, dq, taps.flip(1), False)
    add_up(v, dy, q, dk, taps, True)
    add_up(k, q, dy, dv, taps, True)
    return dq, dk, dv, taps_gradient(q, k, v, dy, taps.shape[1])


@gradients.register_fake
def _(q, k, v, taps, dy):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), taps.new_empty(taps.shape)


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def backward(ctx, dy):
    return gradients(*ctx.saved_tensors, dy)


attend.register_autograd(backward, setup_context=keep)


def toeplitz_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """See kernels.toeplitz_attention."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    return attend(q.to(dtype), k.to(dtype), v.to(dtype), taps.float().contiguous()).to(v.dtype)
