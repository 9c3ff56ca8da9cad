"""The taps' gradient by the transform over blocks (`blocks.py`): as many operations as one more convolution.

With x the spectrum of the gated input and d that of the gated cotangent, both at the same roots, the matrix of a root
has the gradient conj(x)^T d, summed over the batch; a Toeplitz matrix takes the sums of its diagonals. What remains is
linear and small: the adjoint of `blocks.filter_values`, but for its units. Both spectra come divided by P.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import math

import torch
import triton
import triton.language as tl

from kernels.fft_conv.blocks import layout, roots, spread

TILE = 128  # of a root's matrix, a program


@triton.jit
def _matrix(x, d, total, B, i, j, M: tl.constexpr, BR: tl.constexpr):
    """total + x^T d, (N, N): products of tokens i with tokens j, summed over the batch."""
    for first in range(0, B, BR):
        b = first + tl.arange(0, BR)
        across = tl.load(x + b[None, :] * M + i, mask=b[None, :] < B, other=0.0)  # (N, BR)
        values = tl.load(d + b[:, None] * M + j, mask=b[:, None] < B, other=0.0)  # (BR, N)
        total = tl.dot(across, values, total)
    return total


@triton.jit
def _store_diagonals(place, matrix, i, j, N: tl.constexpr):
    """Sums along diagonals: N that start in the first row, then those that start in the first column."""
    skewed = tl.gather(matrix, (i + j) % N, axis=1)  # column delta: j - i = delta, and where i wraps around delta - N
    tl.store(place, tl.sum(tl.where(i + j < N, skewed, 0.0), 0))
    tl.store(place + N, tl.sum(tl.where(i + j < N, 0.0, skewed), 0))


@triton.jit
def diagonals_kernel(x, d, sums, B, M: tl.constexpr, N: tl.constexpr, BR: tl.constexpr):
    """sums[root, i tile, j tile, re | im, side, delta] of conj(x[root, :, b, i]) d[root, :, b, j] over b and along
    diagonals: side 0 holds j - i = delta, side 1 j - i = delta - N, for i, j within an (N, N) tile."""
    root = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)[:, None]
    j = tl.arange(0, N)[None, :]
    x += root * 2 * B * M + tl.program_id(1) * N
    d += root * 2 * B * M + tl.program_id(2) * N
    place = sums + ((root * (M // N) + tl.program_id(1)) * (M // N) + tl.program_id(2)) * (4 * N) + tl.arange(0, N)
    # one part after the other: both at once would take all registers
    real = _matrix(x, d, tl.zeros((N, N), tl.float32), B, i, j, M, BR)
    real = _matrix(x + B * M, d + B * M, real, B, i, j, M, BR)
    _store_diagonals(place, real, i, j, N)
    imag = _matrix(x + B * M, d, tl.zeros((N, N), tl.float32), B, i, j, M, BR)
    imag = _matrix(x, d + B * M, -imag, B, i, j, M, BR)
    _store_diagonals(place + 2 * N, imag, i, j, N)


def collect(sums: torch.Tensor, size: int) -> torch.Tensor:
    """`diagonals_kernel`'s (R, tiles, tiles, 2, 2, N) -> (R, 2, 2 M): entry M + j - i, as in `filter_values`."""
    tiles, n = sums.shape[1], sums.shape[-1]
    values = sums.new_zeros(sums.shape[0], 2, 2 * size)
    for i in range(tiles):
        for j in range(tiles):
            first = size + (j - i) * n
            values[..., first : first + n] += sums[:, i, j, :, 0]
            values[..., first - n : first] += sums[:, i, j, :, 1]
    return values


def taps_of_values(values: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """The adjoint of `filter_values`: (H, P, 2, 2 M) -> (H, P M). Times P: divided by P^2, it shall be a mean."""
    blocks, size = values.shape[1], values.shape[3] // 2
    below, above = values[..., :size], values[..., size:]
    angle = (torch.arange(blocks, device=values.device) + 0.25) * (2 * math.pi / blocks)
    c, s = angle.cos().unsqueeze(-1), angle.sin().unsqueeze(-1)
    real = above[:, :, 0] + below[:, :, 0] * c + below[:, :, 1] * s  # (H, P, M)
    imag = above[:, :, 1] - below[:, :, 0] * s + below[:, :, 1] * c
    return (exact.t() @ torch.cat([real, imag], dim=1)).flatten(1) * blocks


def taps_gradient(x, dy, gate, gate1, taps: int, size: int | None = None) -> torch.Tensor:
    """dk (H, taps), fp32, of gate1 * conv(gate * x, k) for the cotangent dy. x (B, H, L) fp16 or bf16."""
    batch, channels, length = x.shape
    size, blocks = layout(length, size)
    table, _, exact = roots(blocks, x.dtype, x.device)
    spectrum, cotangent = (spread(t, g, table, size, reverse=False) for t, g in ((x, gate), (dy, gate1)))
    tile = min(TILE, size)
    sums = torch.empty(channels * blocks, size // tile, size // tile, 2, 2, tile, dtype=torch.float32, device=x.device)
    diagonals_kernel[(channels * blocks, size // tile, size // tile)](
        spectrum, cotangent, sums, batch, M=size, N=tile, BR=32, num_warps=8, num_stages=2
    )
    values = collect(sums, size).view(channels, blocks, 2, 2 * size)
    dk = taps_of_values(values, exact)[:, :taps]
    return torch.nn.functional.pad(dk, (0, taps - dk.shape[1]))  # taps beyond the sequence have no effect
