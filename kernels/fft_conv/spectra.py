"""Spectra of blocks of tokens on matrix units, at the roots that make the product of two real sequences causal.

The n roots x_s = exp(2 pi j (s + 1/4) / n) are those of x^n = j: of a product of two polynomials there, what lies
beyond x^(n - 1) comes out imaginary, so real sequences need neither padding nor a partner to be packed with. With
n = P M, token t = p M + i and root s = f + P g, a transform is two products with small matrices and a twiddle between
them, order-2 Monarch, and a block never leaves the chip:

    A[f, i] = sum_p exp(2 pi j (f + 1/4) p / P) x[p, i]
    S[f, g] = sum_i exp(2 pi j g i / M) (exp(2 pi j (f + 1/4) i / n) A[f, i])

Precision: products are fp16 with fp32 sums whatever the data's half type. A program sees a whole block, so it scales it
by the power of two that brings its largest element to 1, exactly, and back at the end: fp16 then neither overflows nor
loses bits, and cosines in it are eight times as precise as in bf16, so they need no low halves.
"""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.fft_conv.toeplitz import pointers

SMALL, LARGE = (64, 64), (128, 64)  # P and M of a block
SMALL_UPTO = 16384  # tokens of a sequence
PROGRAMS = 132 * 8  # several for each SM of an H100: the tables are read once a program


@triton.jit
def scaling(most):
    """2^-e and 2^e with 2^e <= max `most` < 2^(e + 1)."""
    e = tl.minimum((tl.max(tl.max(most, 1), 0).to(tl.int32, bitcast=True) >> 23) & 0xFF, 253)
    return ((254 - e) << 23).to(tl.float32, bitcast=True), (e << 23).to(tl.float32, bitcast=True)


@triton.jit
def read_tokens(x, gate, token, first, L, x_t, gate_t, GATED: tl.constexpr):
    """gate * x of the block that begins with token `first`, (P, M) fp32; zeros beyond the sequence."""
    inside = first + token < L
    first = tl.cast(first, tl.int64)
    w = tl.load(x + first * x_t + token * x_t, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        w *= tl.load(gate + first * gate_t + token * gate_t, mask=inside, other=0.0).to(tl.float32)
    return w


@triton.jit
def read_tables(tables, P: tl.constexpr, M: tl.constexpr, BACK: tl.constexpr = False):
    """What a transform multiplies with: cosines and sines [f, p], BACK [p, f]; cosines, sines and minus sines [i, g];
    and where the twiddle's cosines are, [f, i]."""
    f = tl.arange(0, P)[:, None]
    i = tl.arange(0, M)[:, None]
    g = tl.arange(0, M)[None, :]
    first = tables + (2 * P * P if BACK else 0) + f * P + tl.arange(0, P)[None, :]
    second = tables + 4 * P * P + i * M + g
    sines = tl.load(second + M * M)
    twiddle = tables + 4 * P * P + 2 * M * M + f * M + g
    return tl.load(first), tl.load(first + P * P), tl.load(second), sines, -sines, twiddle


@triton.jit
def transform(w, factors, SIZE: tl.constexpr):
    """The real and the imaginary part of S, fp32, of w (P, M) fp16."""
    c_first, s_first, m_real, m_imag, m_minus, twiddle = factors
    a_real = tl.dot(c_first, w)
    a_imag = tl.dot(s_first, w)
    twiddle_real = tl.load(twiddle)  # as often as it is needed: it would not fit into registers beside the data
    twiddle_imag = tl.load(twiddle + SIZE)
    turned_real = (a_real * twiddle_real - a_imag * twiddle_imag).to(tl.float16)
    turned_imag = (a_real * twiddle_imag + a_imag * twiddle_real).to(tl.float16)
    real = tl.dot(turned_imag, m_minus, tl.dot(turned_real, m_real))
    imag = tl.dot(turned_imag, m_real, tl.dot(turned_real, m_imag))
    return real, imag


@triton.jit
def spectra_kernel(
    x, gate, tables, spectra, scales, B, L, blocks, x_b, x_h, x_t, gate_b, gate_h, gate_t,
    GATED: tl.constexpr, P: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """spectra[h, b, block, re | im] of gate * x, divided by their scales, of one channel and a share of its blocks."""
    SIZE: tl.constexpr = P * M
    h = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, P)[:, None] * M + tl.arange(0, M)[None, :]
    factors = read_tables(tables, P, M)
    for item in range(tl.program_id(1), B * blocks, tl.num_programs(1)):
        b = (item // blocks).to(tl.int64)
        x_row = x + b * x_b + h * x_h
        w = read_tokens(x_row, gate + b * gate_b + h * gate_h, token, item % blocks * SIZE, L, x_t, gate_t, GATED)
        down, up = scaling(tl.abs(w))
        real, imag = transform((w * down).to(tl.float16), factors, SIZE)
        place = h * B * blocks + item
        tl.store(spectra + place * 2 * SIZE + token, real.to(tl.float16))
        tl.store(spectra + place * 2 * SIZE + SIZE + token, imag.to(tl.float16))
        tl.store(scales + place, up)


@lru_cache(maxsize=16)
def factors(P: int, M: int, device: torch.device) -> torch.Tensor:
    """Cosines and sines, fp16: [f, p] of the first factor, the same transposed, [i, g] of the second, the twiddle."""
    f = torch.arange(P).double() + 0.25
    angles = [
        2 * math.pi / P * torch.outer(f, torch.arange(P).double()),
        2 * math.pi / P * torch.outer(torch.arange(P).double(), f),
        2 * math.pi / M * torch.outer(torch.arange(M).double(), torch.arange(M).double()),
        2 * math.pi / (P * M) * torch.outer(f, torch.arange(M).double()),
    ]
    return torch.cat([part.flatten() for angle in angles for part in (angle.cos(), angle.sin())]).half().to(device)


def turn(n: int, device: torch.device) -> torch.Tensor:
    """exp(2 pi j t / (4 n)): what makes roots of x^n = 1 those of x^n = j."""
    return torch.polar(torch.ones(n, device=device), torch.arange(n, device=device) * (math.pi / (2 * n)))


def factoring(length: int) -> tuple[int, int]:
    """P and M of the blocks that sequences of `length` tokens are cut into, by what was the faster on an H100."""
    return SMALL if length <= SMALL_UPTO else LARGE


def whole(length: int) -> int:
    """Tokens of the blocks of such a sequence."""
    P, M = factoring(length)
    return triton.cdiv(length, P * M) * P * M


def shares(channels: int, blocks: int) -> tuple[int, int]:
    """The grid: a program takes a channel and a share of its blocks, of all sequences."""
    return channels, min(blocks, triton.cdiv(PROGRAMS, channels))


class Spectra(NamedTuple):
    """Of all blocks of a stream: (H, B, blocks, 2, P, M) fp16, by what each is to be multiplied (H, B, blocks) fp32,
    and the length of the sequences."""

    values: torch.Tensor
    ups: torch.Tensor
    length: int


def spectra(x, gate) -> Spectra:
    """Of gate * x, (B, H, L) fp16 or bf16."""
    batch, channels, length = x.shape
    P, M = factoring(length)
    blocks = whole(length) // (P * M)
    values = torch.empty(channels, batch, blocks, 2, P, M, dtype=torch.float16, device=x.device)
    ups = torch.empty(channels, batch, blocks, dtype=torch.float32, device=x.device)
    tensors, strides = pointers(x, gate)
    spectra_kernel[shares(channels, batch * blocks)](
        *tensors, factors(P, M, x.device), values, ups, batch, length, blocks, *strides, GATED=gate is not None,
        P=P, M=M, num_warps=max(1, P // 16), num_stages=1,
    )  # fmt: skip
    return Spectra(values, ups, length)
