"""Toeplitz attention in Triton: scores and weights exist a tile at a time, in registers.

With w[t, s] = taps[t - s], y and the gradients of q, k and v are sums over pairs of tokens, out = ((a b^T) * w) c:

    y   a = q   b = k   c = v   s <= t          dq  a = dy  b = v   c = k   s <= t          (before_kernel)
    dv  a = k   b = q   c = dy  s >= t          dk  a = v   b = dy  c = q   s >= t          (after_kernel, both)

The tile of w depends on the distance of two blocks alone. So a program takes several batch rows of a head, for which it
is fetched once; and the filter is first laid out as a band of its matrix, of which every tile is a block of rows:
fetched without index arithmetic, which would cost more than the products. The gradient of the filter sums
(q k^T) * (dy v^T) over all batch rows and pairs of blocks at one distance, and then along diagonals, a share of the
rows a program. The filter is rounded to bf16 where the data is, and its products with scores to the type of the data;
sums are fp32.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl

from kernels.fft_conv.toeplitz import halves, store_diagonals
from kernels.linear_attention.sums import scaled_product
from kernels.tiles import bucket, first_columns, operator, precision, sum_shares, within_reach

SHARES = 32  # at most so many partial sums of the filter's gradient
PROGRAMS = 256  # that fill a card: about two a multiprocessor


@triton.jit
def _tile(x, t, e, T, D, x_t, x_d, WHOLE: tl.constexpr):
    """Tokens t and features e of x, whichever of them is the column; zeros outside, where there is any."""
    place = x + t * x_t + e * x_d
    if WHOLE:
        return tl.load(place)
    else:
        return tl.load(place, mask=(t < T) & (e < D), other=0.0)


@triton.jit
def bands_kernel(taps, bands, K, rows, zero, AHEAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """bands (H, rows, BN): row zero + x holds taps[x - y], y < BN; AHEAD: taps[y - x]; 0 where there is no such tap."""
    h = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    y = tl.arange(0, BN)[None, :]
    tap = y - row + zero if AHEAD else row - zero - y
    value = tl.load(taps + h * K + tap, mask=(tap >= 0) & (tap < K), other=0.0)
    tl.store(bands + (h * rows + row) * BN + y, value.to(bands.dtype.element_ty), mask=row < rows)


@triton.jit
def before_kernel(
    a, b, c, out, bands,
    B, H, T, K, D, N, blocks,
    a_b, a_h, a_t, a_d, b_b, b_h, b_t, b_d, c_b, c_h, c_t, c_d, out_b, out_h, out_t, out_d,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A block of tokens of `out`, of ROWS batch rows: a, b (B, H, T, D), c, out (B, H, T, N); bands of taps[x - y]."""
    low = (blocks - 1 - tl.program_id(0) % blocks) * BM  # the longest first
    h = (tl.program_id(0) // blocks % H).to(tl.int64)
    row = (tl.program_id(0) // blocks // H).to(tl.int64) * ROWS
    a += h * a_h + row * a_b
    b += h * b_h + row * b_b
    c += h * c_h + row * c_b
    out += h * out_h + row * out_b
    bands += h * (blocks + 1) * BM * BN + (BM + tl.arange(0, BM)[:, None]) * BN + tl.arange(0, BN)[None, :]
    i = low + tl.arange(0, BM)[:, None]
    e, n = tl.arange(0, BD), tl.arange(0, BV)[None, :]
    own, acc = (), ()
    for r in tl.static_range(ROWS):
        length = tl.where(row + r < B, T, 0)
        own += (_tile(a + r * a_b, i, e[None, :], length, D, a_t, a_d, WHOLE),)  # (BM, BD)
        acc += (tl.zeros((BM, BV), tl.float32),)
    for j0 in range(tl.maximum(low - K + 1, 0) // BN * BN, tl.minimum(T, low + BM), BN):
        j = j0 + tl.arange(0, BN)
        weight = tl.load(bands + (low - j0) * BN).to(tl.float32)  # (BM, BN)
        new = ()
        for r in tl.static_range(ROWS):
            length = tl.where(row + r < B, T, 0)
            others = _tile(b + r * b_b, j[None, :], e[:, None], length, D, b_t, b_d, WHOLE)  # (BD, BN)
            values = _tile(c + r * c_b, j[:, None], n, length, N, c_t, c_d, WHOLE)  # (BN, BV)
            score = tl.dot(own[r], others, input_precision=PRECISION)
            new += (acc[r] + scaled_product(score * weight, values, PRECISION),)
        acc = new
    for r in tl.static_range(ROWS):
        mask = (i < tl.where(row + r < B, T, 0)) & (n < N)
        tl.store(out + r * out_b + i * out_t + n * out_d, acc[r].to(out.dtype.element_ty), mask=mask)


@triton.jit
def after_kernel(
    q, k, v, dy, dk, dv, bands,
    B, H, T, K, D, N, blocks,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, dy_b, dy_h, dy_t, dy_d,
    dk_b, dk_h, dk_t, dk_d, dv_b, dv_h, dv_t, dv_d,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A block of tokens of dk and dv, of ROWS batch rows."""
    low = tl.program_id(0) % blocks * BM  # the longest first
    h = (tl.program_id(0) // blocks % H).to(tl.int64)
    row = (tl.program_id(0) // blocks // H).to(tl.int64) * ROWS
    q += h * q_h + row * q_b
    k += h * k_h + row * k_b
    v += h * v_h + row * v_b
    dy += h * dy_h + row * dy_b
    dk += h * dk_h + row * dk_b
    dv += h * dv_h + row * dv_b
    bands += h * (blocks + 1) * BM * BN + (blocks * BM + tl.arange(0, BM)[:, None]) * BN + tl.arange(0, BN)[None, :]
    j = low + tl.arange(0, BM)[:, None]
    e, n = tl.arange(0, BD), tl.arange(0, BV)
    keys, values, sum_k, sum_v = (), (), (), ()
    for r in tl.static_range(ROWS):
        length = tl.where(row + r < B, T, 0)
        keys += (_tile(k + r * k_b, j, e[None, :], length, D, k_t, k_d, WHOLE),)  # (BM, BD)
        values += (_tile(v + r * v_b, j, n[None, :], length, N, v_t, v_d, WHOLE),)  # (BM, BV)
        sum_k += (tl.zeros((BM, BD), tl.float32),)
        sum_v += (tl.zeros((BM, BV), tl.float32),)
    for i0 in range(low, tl.minimum(T, low + BM - 1 + K), BN):
        i = i0 + tl.arange(0, BN)[None, :]
        weight = tl.load(bands + (low - i0) * BN).to(tl.float32)  # (BM, BN)
        new_k, new_v = (), ()
        for r in tl.static_range(ROWS):
            length = tl.where(row + r < B, T, 0)
            queries = _tile(q + r * q_b, i, e[:, None], length, D, q_t, q_d, WHOLE)  # (BD, BN)
            slopes = _tile(dy + r * dy_b, i, n[:, None], length, N, dy_t, dy_d, WHOLE)  # (BV, BN)
            score = tl.dot(keys[r], queries, input_precision=PRECISION) * weight
            new_v += (sum_v[r] + scaled_product(score, tl.trans(slopes), PRECISION),)
            slope = tl.dot(values[r], slopes, input_precision=PRECISION) * weight
            new_k += (sum_k[r] + scaled_product(slope, tl.trans(queries), PRECISION),)
        sum_k, sum_v = new_k, new_v
    e, n = e[None, :], n[None, :]
    for r in tl.static_range(ROWS):
        here = j < tl.where(row + r < B, T, 0)
        tl.store(dk + r * dk_b + j * dk_t + e * dk_d, sum_k[r].to(dk.dtype.element_ty), mask=here & (e < D))
        tl.store(dv + r * dv_b + j * dv_t + n * dv_d, sum_v[r].to(dv.dtype.element_ty), mask=here & (n < N))


@triton.jit
def taps_kernel(
    q, k, v, dy, partial,
    B, H, T, D, N, blocks, reach,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, dy_b, dy_h, dy_t, dy_d,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
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
    pairs, step = blocks - d, tl.num_programs(2)
    row, pair = share // pairs, share % pairs
    for _ in range(share, B * pairs, step):
        b = row.to(tl.int64)
        i = pair * M + tl.arange(0, M)[:, None]
        j = (pair + d) * M + tl.arange(0, M)[None, :]
        keys = _tile(k + b * k_b, i, e[None, :], T, D, k_t, k_d, WHOLE)  # (M, BD)
        queries = _tile(q + b * q_b, j, e[:, None], T, D, q_t, q_d, WHOLE)  # (BD, M)
        score = tl.dot(keys, queries, input_precision=PRECISION)
        values = _tile(v + b * v_b, i, n[None, :], T, N, v_t, v_d, WHOLE)  # (M, BV)
        slopes = _tile(dy + b * dy_b, j, n[:, None], T, N, dy_t, dy_d, WHOLE)  # (BV, M)
        product += score * tl.dot(values, slopes, input_precision=PRECISION)
        over = pair + step % pairs >= pairs
        row += step // pairs + over.to(tl.int32)
        pair += step % pairs - tl.where(over, pairs, 0)
    size = H * (reach + 1) * M
    place = partial + share * 4 * size + h * (reach + 1) * M
    top, bottom = halves(product, M, M)
    store_diagonals(top, 0, place, d, reach, size, M)
    store_diagonals(bottom, M // 2, place + 2 * size, d, reach, size, M)


def tiling(batch: int, heads: int, length: int, widest: int, dtype: torch.dtype, after: bool) -> dict[str, int]:
    """Tokens a block, batch rows a program, warps, by what was fastest on an H100, later an H200, at widths of 16.

    fp32 products are three of TF32, whose operands take registers; so do the two sums of `after`."""
    if dtype == torch.float32:
        block = bucket(length, 16, 32 if widest <= 32 and not after else 16)
        return {"ROWS": 1, "BM": block, "BN": block, "num_warps": 8 if after and widest > 32 else 4, "num_stages": 1}
    narrow = widest <= 16
    short = narrow and not 64 < length <= 128  # blocks of 64 tokens, but for what one block of 128 holds
    block = bucket(length, 16, (32 if widest > 64 else 64) if after else (64 if short else 128))
    wide = 64 if short and not after else 32
    enough = narrow and batch * heads * triton.cdiv(length, block) >= 4 * PROGRAMS
    rows = (2 if after or dtype == torch.float16 else 4) if enough else 1  # fp16 scales rows of weights: registers
    warps = 8 if block * widest >= 2048 and not narrow else 4 if block > 32 else 2
    return {"ROWS": rows, "BM": block, "BN": min(block, wide), "num_warps": warps, "num_stages": 3}


def widths(a: torch.Tensor, c: torch.Tensor) -> dict[str, int]:
    return {"BD": bucket(a.shape[3], 16, 256), "BV": bucket(c.shape[3], 16, 256)}


def launch(kernel, tensors: tuple[torch.Tensor, ...], taps: torch.Tensor) -> None:
    """`kernel` over the blocks of tokens; the first of the tensors are a (B, H, T, D) and, third, c (B, H, T, N)."""
    a, c = tensors[0], tensors[2]
    batch, heads, length, inner = a.shape
    blocks = widths(a, c)
    after = kernel is after_kernel
    options = tiling(batch, heads, length, max(blocks.values()), a.dtype, after)
    number, rows = triton.cdiv(length, options["BM"]), options["ROWS"]
    bands = bands_of(taps, a.dtype, number, options["BM"], options["BN"], after)
    kernel[(number * heads * triton.cdiv(batch, rows),)](
        *tensors, bands, batch, heads, length, taps.shape[1], inner, c.shape[3], number,
        *(stride for t in tensors for stride in t.stride()),
        WHOLE=whole(a, c, options["BM"], **blocks) and batch % rows == 0,
        PRECISION=precision(a.dtype), **blocks, **options,
    )  # fmt: skip


def bands_of(taps: torch.Tensor, dtype: torch.dtype, blocks: int, BM: int, BN: int, ahead: bool) -> torch.Tensor:
    """The filter as matrices in which the tile of weights of two blocks of tokens is a block of rows."""
    heads, rows = taps.shape[0], (blocks + 1) * BM
    bands = taps.new_empty(heads, rows, BN, dtype=torch.float32 if dtype == torch.float16 else dtype)
    bands_kernel[(triton.cdiv(rows, 32), heads)](
        taps, bands, taps.shape[1], rows, blocks * BM if ahead else BM, AHEAD=ahead, BM=32, BN=BN
    )
    return bands


def whole(a: torch.Tensor, c: torch.Tensor, block: int, BD: int, BV: int) -> bool:
    """Whether blocks and widths cover the tensors without overhang, so that no load needs a mask."""
    return a.shape[2] % block == 0 and a.shape[3] == BD and c.shape[3] == BV


def tiling_taps(length: int, widest: int, dtype: torch.dtype) -> dict[str, int]:
    """Tokens a block, warps."""
    narrow = widest <= 16
    if dtype == torch.float32:
        return {"M": 32 if narrow else 16, "num_warps": 4 if narrow else 2, "num_stages": 1}
    block = bucket(length, 32, 64 if widest <= 32 else 32)
    if narrow and length <= 256 and length % block == 0:  # with masks two warps would spill
        return {"M": block, "num_warps": 2, "num_stages": 3}
    return {"M": block, "num_warps": 4 if narrow else 8, "num_stages": 4 if narrow else 3}


def taps_gradient(q, k, v, dy, taps: int) -> torch.Tensor:
    """(H, taps), fp32."""
    batch, heads, length, inner = q.shape
    blocks = widths(q, v)
    options = tiling_taps(length, max(blocks.values()), q.dtype)
    size = options["M"]
    number = triton.cdiv(length, size)
    reach = min(number - 1, (taps + size - 2) // size)  # block distances that the filter touches
    shares = max(1, min(SHARES, batch, triton.cdiv(4 * PROGRAMS, heads * (reach + 1))))
    partial = q.new_empty(shares * 4, heads, (reach + 1) * size, dtype=torch.float32)
    strides = [s for t in (q, k, v, dy) for s in t.stride()]
    taps_kernel[(reach + 1, heads, shares)](
        q, k, v, dy, partial, batch, heads, length, inner, v.shape[3], number, reach, *strides,
        WHOLE=whole(q, v, size, **blocks), PRECISION=precision(q.dtype), **blocks, **options,
    )  # fmt: skip
    return first_columns(sum_shares(partial), taps)  # taps beyond the sequence have no effect


@operator("mad::toeplitz_attention")
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """q, k, v of one type, in any layout within reach; taps fp32, contiguous. y is laid out as v."""
    y = torch.empty_like(v)
    launch(before_kernel, (q, k, v, y), taps)
    return y


@attend.register_fake
def _(q, k, v, taps):
    return torch.empty_like(v)


@operator("mad::toeplitz_attention_backward")
def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    launch(before_kernel, (dy, v, k, dq), taps)
    launch(after_kernel, (q, k, v, dy, dk, dv), taps)
    return dq, dk, dv, taps_gradient(q, k, v, dy, taps.shape[1])


@gradients.register_fake
def _(q, k, v, taps, dy):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), taps.new_empty(taps.shape)


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def backward(ctx, dy):
    return gradients(*ctx.saved_tensors, within_reach(dy))


attend.register_autograd(backward, setup_context=keep)


def toeplitz_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """See kernels.toeplitz_attention."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    return attend(*(within_reach(t.to(dtype)) for t in (q, k, v)), taps.float().contiguous()).to(v.dtype)
