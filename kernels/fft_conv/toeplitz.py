"""Long convolution as a product with a Toeplitz matrix, on matrix units: the fastest way up to a few thousand tokens.

A sequence is cut into blocks of M tokens. Block p of the output is the sum over d of block p - d of the input times the
(M, M) matrix T_d[i, j] = k[d M + j - i], which depends on d alone: so the blocks of all batch rows are rows of one
matrix product. What lies beyond the last tap is never visited: a filter shorter than the sequence costs its own length.
The gradient of the input is the same product with the transposed matrices, going forward in time; that of the taps
sums blockwise products over their diagonals. It does more arithmetic than an FFT and is faster all the same: no
twiddles, no complex numbers, one pass over memory, operands exactly as they came.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.tiles import bucket, first_columns, precision, sum_shares

BANDS_FROM = 65  # tokens from which copies of the filter pay for themselves
GATES_UPTO = 4  # blocks a sequence up to which a gate is multiplied where it is read; with more it is read too often
BACKWARD_GATES_UPTO = 2  # where three products read what is gated
SHARES = 8  # at most so many partial sums of the taps' gradient a channel


@triton.jit
def _blocks(x, gate, rows, token, B, L, P, x_b, x_t, gate_b, gate_t, GATED: tl.constexpr):
    """The (rows, M) tile of x, times its gate: row r is block r // B of sequence r % B, whose tokens are `token`."""
    b = (rows % B).to(tl.int64)
    inside = (rows < B * P) & (token >= 0) & (token < L)
    tile = tl.load(x + b * x_b + token * x_t, mask=inside, other=0.0)
    if GATED:
        tile = (tile.to(tl.float32) * tl.load(gate + b * gate_b + token * gate_t, mask=inside, other=0.0)).to(
            tile.dtype
        )
    return tile


@triton.jit
def bands_kernel(
    k, skip, bands, K, W, OFFSET, TRANSPOSED: tl.constexpr, SKIP: tl.constexpr, BW: tl.constexpr
):  # fmt: skip
    """bands[h, s, n] = k[h, n - s - OFFSET], TRANSPOSED k[h, s + OFFSET - n]: eight copies, each a token further.

    Row i of a Toeplitz tile is row i - 1 moved by one token. Read from the copy i % 8 it starts at a multiple of 8:
    then sixteen bytes are loaded at a time instead of two.
    """
    h = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BW + tl.arange(0, BW)
    for s in tl.static_range(8):
        if TRANSPOSED:
            back = s + OFFSET - n
        else:
            back = n - s - OFFSET
        taps = tl.load(k + h * K + back, mask=(back >= 0) & (back < K), other=0.0).to(tl.float32)
        if SKIP:
            taps += tl.where(back == 0, tl.load(skip + h).to(tl.float32), 0.0)
        tl.store(bands + (h * 8 + s) * W + n, taps.to(bands.dtype.element_ty), mask=n < W)


@triton.jit
def product_kernel(
    x, gate, gate1, gate2, y1, y2, k, skip, bands,
    B, L, P, K, W, OFFSET,
    x_b, x_h, x_t, gate_b, gate_h, gate_t, gate1_b, gate1_h, gate1_t, gate2_b, gate2_h, gate2_t,
    y1_b, y1_h, y1_t, y2_b, y2_h, y2_t,
    TRANSPOSED: tl.constexpr, SKIP: tl.constexpr, GATED: tl.constexpr, GATED1: tl.constexpr, SECOND: tl.constexpr,
    BANDED: tl.constexpr, M: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y1 = gate1 * (k conv (gate * x)), and where SECOND y2 = gate2 * the same; TRANSPOSED: correlation."""
    h = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BR
    rows = first + tl.arange(0, BR)[:, None]  # (BR, 1)
    i = tl.arange(0, BK)[:, None]
    j = tl.arange(0, M)[None, :]
    token = (rows // B) * M + j  # (BR, M): what is written
    window = (rows // B) * M + tl.arange(0, BK)[None, :]  # (BR, BK): what is read, shifted from step to step
    x += h * x_h
    gate += h * gate_h
    direct = 0.0
    if SKIP:
        direct = tl.load(skip + h).to(tl.float32)
    if TRANSPOSED:
        steps = tl.cdiv(L - (first // B) * M, BK)
    else:
        steps = ((first + BR - 1) // B + 1) * (M // BK)
    total = tl.zeros((BR, M), tl.float32)
    for e in range(0, tl.minimum(steps, (K + M - 2) // BK + 1)):
        if TRANSPOSED:
            shift = e * BK
            back = shift + i - j
        else:
            shift = M - (e + 1) * BK
            back = j - i - shift
        tile = _blocks(x, gate, rows, window + shift, B, L, P, x_b, x_t, gate_b, gate_t, GATED)  # (BR, BK)
        if BANDED:
            taps = tl.load(bands + (h * 8 + i % 8) * W + (OFFSET - shift) + (j - i // 8 * 8))  # (BK, M)
        else:
            taps = tl.load(k + h * K + back, mask=(back >= 0) & (back < K), other=0.0).to(tl.float32)
            if SKIP:
                taps += tl.where(back == 0, direct, 0.0)
            taps = taps.to(tile.dtype)
        total = tl.dot(tile, taps, total, input_precision=PRECISION)
    b = (rows % B).to(tl.int64)
    inside = (rows < B * P) & (token < L)
    if GATED1:
        y = total * tl.load(gate1 + h * gate1_h + b * gate1_b + token * gate1_t, mask=inside, other=0.0)
    else:
        y = total
    tl.store(y1 + h * y1_h + b * y1_b + token * y1_t, y.to(y1.dtype.element_ty), mask=inside)
    if SECOND:
        y = total * tl.load(gate2 + h * gate2_h + b * gate2_b + token * gate2_t, mask=inside, other=0.0)
        tl.store(y2 + h * y2_h + b * y2_b + token * y2_t, y.to(y2.dtype.element_ty), mask=inside)


@triton.jit
def halves(x, M: tl.constexpr, N: tl.constexpr):
    """The upper and the lower half of x (M, N)."""
    return tl.split(tl.permute(tl.reshape(x, (2, M // 2, N)), (1, 2, 0)))


@triton.jit
def _diagonals(x, first, ROWS: tl.constexpr, M: tl.constexpr):
    """Sums of the diagonals 0 to M - 1 of rows `first` on of a product (M, M), and of -M to -1."""
    i = first + tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, M)[None, :]
    skewed = tl.gather(x, (i + j) % M, axis=1)  # column delta: the diagonal delta, and below the main delta - M
    return tl.sum(tl.where(i + j < M, skewed, 0.0), 0), tl.sum(tl.where(i + j < M, 0.0, skewed), 0)


@triton.jit
def store_diagonals(x, first, place, d, D, below, M: tl.constexpr):
    """Those of half a product, of block distance d, by quarters: registers hold no more beside the product."""
    top, bottom = halves(x, M // 2, M)
    above1, below1 = _diagonals(top, first, M // 4, M)
    above2, below2 = _diagonals(bottom, first + M // 4, M // 4, M)
    place += tl.arange(0, M)
    tl.store(place + d * M, above1 + above2)
    place += below
    if d > 0:
        tl.store(place + (d - 1) * M, below1 + below2)
    if d == D:
        tl.store(place + d * M, tl.zeros((M,), tl.float32))


@triton.jit
def taps_kernel(
    x, dy, gate, gate1, partial,
    B, H, L, P, D,
    x_b, x_h, x_t, dy_b, dy_h, dy_t, gate_b, gate_h, gate_t, gate1_b, gate1_h, gate1_t,
    GATED: tl.constexpr, GATED1: tl.constexpr, M: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Block distance d's part of dk in partial (shares, 4, H, (D + 1) M).

    Diagonals at or above the main one belong to taps d M + delta; those below it to the block of taps before.
    """
    d = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    share = tl.program_id(2)
    i = tl.arange(0, M)[:, None]
    j = tl.arange(0, M)[None, :]
    x += h * x_h
    dy += h * dy_h
    gate += h * gate_h
    gate1 += h * gate1_h
    product = tl.zeros((M, M), tl.float32)
    for first in range(d * B + share * BR, B * P, tl.num_programs(2) * BR):
        rows = first + tl.arange(0, BR)
        then = rows[None, :]
        before = _blocks(x, gate, then, (then // B - d) * M + i, B, L, P, x_b, x_t, gate_b, gate_t, GATED)  # (M, BR)
        now = rows[:, None]
        after = _blocks(dy, gate1, now, (now // B) * M + j, B, L, P, dy_b, dy_t, gate1_b, gate1_t, GATED1)  # (BR, M)
        product = tl.dot(before, after, product, input_precision=PRECISION)
    rows = H * (D + 1) * M
    place = partial + share * 4 * rows + h * (D + 1) * M
    top, bottom = halves(product, M, M)
    store_diagonals(top, 0, place, d, D, rows, M)
    store_diagonals(bottom, M // 2, place + 2 * rows, d, D, rows, M)


def blocking(length: int, taps: int, most: int) -> tuple[int, int, int]:
    """Tokens a block, at most `most`, blocks a sequence, and the largest distance between blocks that a filter
    reaches."""
    size = bucket(length, 16, most)
    blocks = triton.cdiv(length, size)
    return size, blocks, min(blocks - 1, (taps + size - 2) // size)


def largest(dtype: torch.dtype) -> int:
    """Tokens a block of `product_kernel` at most: three TF32 products take twice the registers."""
    return 64 if dtype == torch.float32 else 128


def gates_first(x: torch.Tensor, upto: int) -> bool:
    """Whether a gate is multiplied before the product, as each of more than `upto` blocks would read it again."""
    return triton.cdiv(x.shape[2], largest(x.dtype)) > upto


def with_skip(k: torch.Tensor, skip: torch.Tensor | None, most: int) -> torch.Tensor:
    """The taps within reach, (H, K) with K at most `most`, fp32, the skip added to the first."""
    k = k[:, :most].float()
    return k if skip is None else torch.cat([k[:, :1] + skip.float().unsqueeze(-1), k[:, 1:]], dim=-1)


def pointers(x: torch.Tensor, *others: torch.Tensor | None) -> tuple[list[torch.Tensor], list[int]]:
    """Tensors and their strides as a kernel takes them; x stands for those that are not there."""
    given = [x, *(x if t is None else t for t in others)]
    return given, [n for t in given for n in t.stride()]


def convolve(x, k, skip, gate, gate1, gate2=None, *, transposed=False) -> Any:
    """gate1 * conv(gate * x, k), and with gate2 also gate2 * the same. x (B, H, L), k (H, K), contiguous."""
    batch, channels, length = x.shape
    size, blocks, _ = blocking(length, k.shape[1], largest(x.dtype))
    if gate is not None and gates_first(x, GATES_UPTO):
        x, gate = x * gate, None
    y1 = torch.empty_like(x)
    y2 = None if gate2 is None else torch.empty_like(x)
    banded = length >= BANDS_FROM
    bands, width, offset = copies(k, skip, x.dtype, size, transposed) if banded else (k, 0, 0)
    rows, step, warps, stages = tiling(x, size, batch * blocks, [gate, gate1, gate2])
    grid = (triton.cdiv(batch * blocks, rows), channels)
    tensors, strides = pointers(x, gate, gate1, gate2, y1, y2)
    product_kernel[grid](
        *tensors, k, skip, bands, batch, length, blocks, k.shape[1], width, offset, *strides,
        TRANSPOSED=transposed, SKIP=skip is not None, GATED=gate is not None, GATED1=gate1 is not None,
        SECOND=gate2 is not None, BANDED=banded, M=size, BR=rows, BK=step, PRECISION=precision(x.dtype),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y1 if y2 is None else (y1, y2)


def tiling(x: torch.Tensor, size: int, rows: int, gates: list) -> tuple[int, int, int, int]:
    """Rows of a program, tokens a step, warps and pipeline stages, for `rows` rows in all, by what was fastest on an
    H200 for 128 x 512 sequences of 128 to 1,024 tokens. Gates take registers."""
    read, *written = (gate is not None for gate in gates)
    gated = read or any(written)
    if x.dtype == torch.float32:
        rows = bucket(rows, 16, 64 if gated else 128)
        return rows, min(size, 32), 8 if size * rows >= 64 * 64 else 4, 2
    if size < 128:
        return bucket(rows, 16, 64), min(size, 32), 4, 1
    if x.shape[-1] % 8:  # not aligned: loads of single tokens
        return bucket(rows, 16, 64), 32, 8 if gated else 4, 2
    blocks = x.shape[-1] // size
    if blocks <= 2 and read or blocks <= 4 and all(written):
        return bucket(rows, 16, 64), 64, 4, 2
    if read:
        return bucket(rows, 16, 128), 32, 4, 3
    if rows < 1024 or gated:
        return bucket(rows, 16, 128), 64, 8 if rows >= 64 else 4, 3
    return 256, 32, 8, 4


def copies(k, skip, dtype: torch.dtype, size: int, transposed: bool) -> tuple[torch.Tensor, int, int]:
    """`bands_kernel`'s (H, 8, W), W, and the offset of tap 0."""
    channels, taps = k.shape
    offset = -(-(taps + 2 * size) // 16) * 16 if transposed else size
    width = offset + size if transposed else -(-(taps + 3 * size) // 16) * 16
    bands = torch.empty(channels, 8, width, dtype=dtype, device=k.device)
    bands_kernel[(channels, triton.cdiv(width, 512))](
        k, skip, bands, taps, width, offset, TRANSPOSED=transposed, SKIP=skip is not None, BW=512
    )
    return bands, width, offset


def taps_gradient(x, dy, gate, gate1, taps: int) -> torch.Tensor:
    """dk (H, taps), fp32, of gate1 * conv(gate * x, k) for the cotangent dy."""
    batch, channels, length = x.shape
    size, blocks, reach = blocking(length, taps, 64)  # larger blocks have more diagonals, whose sums take the time
    single = x.dtype == torch.float32
    rows = 32 if single or length % 8 else 64  # not aligned: loads of single tokens, whose addresses take registers
    shares = max(1, min(SHARES, 264 // (channels * (reach + 1)), triton.cdiv(batch, rows)))
    partial = x.new_empty(shares, 4, channels, (reach + 1) * size, dtype=torch.float32)
    tensors, strides = pointers(x, dy, gate, gate1)
    taps_kernel[(reach + 1, channels, shares)](
        *tensors, partial, batch, channels, length, blocks, reach, *strides,
        GATED=gate is not None, GATED1=gate1 is not None, M=size, BR=rows, PRECISION=precision(x.dtype),
        num_warps=8 if single and size >= 32 else 4, num_stages=2,
    )  # fmt: skip
    sums = sum_shares(partial.view(shares * 4, channels, -1))
    return first_columns(sums, taps)  # taps beyond the sequence have no effect
