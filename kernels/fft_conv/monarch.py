"""Long convolution by Fourier transforms on matrix units: order-2 Monarch, a block of tokens never leaves the chip.

Polynomials are multiplied at the n roots x_s = exp(2 pi j (s + 1/4) / n) of x^n = j: what lies beyond x^(n - 1) comes
out imaginary, so real sequences need neither padding nor a partner to be packed with. With n = P M, token t = p M + i
and root s = f + P g, a transform is two products with small matrices and a twiddle between them:

    A[f, i] = sum_p exp(2 pi j (f + 1/4) p / P) x[p, i]
    S[f, g] = sum_i exp(2 pi j g i / M) (exp(2 pi j (f + 1/4) i / n) A[f, i])

and its inverse is the same backwards: 8 P + 16 M operations a token for a convolution. A longer sequence is cut into
blocks of n tokens, its filter into parts K_0, K_1, ... of n taps. What a product sends into the next block is its
imaginary part, so block b of the output is

    Y_b = sum_d S_(b - d) K'_d,    K'_d = K_d - j K_(d - 1)

with one transform there and one back for each block, whatever their number; parts beyond the last tap do not exist. A
correlation sums over the blocks after b, with conj(K'). Spectra travel through memory; backward needs those of input
and cotangent once for all of its products.

Precision: products are fp16 with fp32 sums whatever the data's half type. A program sees a whole block, so it scales it
by the power of two that brings its largest element to 1, exactly, and back at the end: fp16 then neither overflows nor
loses bits, and cosines in it are eight times as precise as in bf16, so they need no low halves.
"""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.fft_conv.toeplitz import pointers, with_skip

SMALL, LARGE = (64, 64), (128, 64)  # P and M of a block
SMALL_UPTO = 16384  # tokens of a sequence
LONGEST = 16 * 8192  # tokens: blocks meet in pairs, so in the end cuFFT is the faster
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


@triton.jit
def outputs_kernel(
    spectra, ups, values, scales, tables, gate1, gate2, y1, y2, B, L, blocks, parts,
    gate1_b, gate1_h, gate1_t, gate2_b, gate2_h, gate2_t, y1_b, y1_h, y1_t, y2_b, y2_h, y2_t,
    GATED1: tl.constexpr, SECOND: tl.constexpr, AHEAD: tl.constexpr, P: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """y1 = gate1 * (the inverse of sum_d S_(b - d) K'_d), and where SECOND y2 with gate2, of one channel and a share of
    its blocks. AHEAD: of S_(b + d)."""
    SIZE: tl.constexpr = P * M
    h = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, P)[:, None]
    token = f * M + tl.arange(0, M)[None, :]
    c_back, s_back, m_real, m_imag, m_minus, twiddle = read_tables(tables, P, M, True)
    scale = tl.load(scales + h)
    values += h * parts * 2 * SIZE + token
    for item in range(tl.program_id(1), B * blocks, tl.num_programs(1)):
        block = item % blocks
        b = (item // blocks).to(tl.int64)
        here = h * B * blocks + item
        if AHEAD:
            step, others = 1, tl.minimum(blocks - block, parts)
        else:
            step, others = -1, tl.minimum(block + 1, parts)
        most = tl.load(ups + here)
        for d in range(1, others):
            most = tl.maximum(most, tl.load(ups + here + d * step))
        most = tl.maximum(most, 1e-37)  # of blocks of zeros
        real = tl.zeros((P, M), tl.float32)
        imag = tl.zeros((P, M), tl.float32)
        for d in range(0, others):
            share = tl.load(ups + here + d * step) / most  # a power of two
            s = spectra + (here + d * step) * 2 * SIZE + token
            s_real = tl.load(s) * share
            s_imag = tl.load(s + SIZE) * share
            k_real = tl.load(values + d * 2 * SIZE)
            k_imag = tl.load(values + d * 2 * SIZE + SIZE)
            real += s_real * k_real - s_imag * k_imag
            imag += s_real * k_imag + s_imag * k_real
        y_real = real.to(tl.float16)
        y_imag = imag.to(tl.float16)
        real = tl.dot(y_imag, m_imag, tl.dot(y_real, m_real))
        imag = tl.dot(y_real, m_minus, tl.dot(y_imag, m_real))
        twiddle_real = tl.load(twiddle)
        twiddle_imag = tl.load(twiddle + SIZE)
        y_real = (real * twiddle_real + imag * twiddle_imag).to(tl.float16)
        y_imag = (imag * twiddle_real - real * twiddle_imag).to(tl.float16)
        y = tl.dot(s_back, y_imag, tl.dot(c_back, y_real)) * (most * scale)
        start = block * SIZE
        inside = start + token < L
        at = tl.cast(start, tl.int64)
        out = y
        if GATED1:
            place = gate1 + b * gate1_b + h * gate1_h + at * gate1_t + token * gate1_t
            out = y * tl.load(place, mask=inside, other=0.0)
        place = y1 + b * y1_b + h * y1_h + at * y1_t + token * y1_t
        tl.store(place, out.to(y1.dtype.element_ty), mask=inside)
        if SECOND:
            place = gate2 + b * gate2_b + h * gate2_h + at * gate2_t + token * gate2_t
            out = y * tl.load(place, mask=inside, other=0.0)
            place = y2 + b * y2_b + h * y2_h + at * y2_t + token * y2_t
            tl.store(place, out.to(y2.dtype.element_ty), mask=inside)


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


def filter_values(k, skip, P: int, M: int, blocks: int, transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """K' at the roots, (H, parts, re | im, P, M) fp16, each channel scaled by a power of two; and by what a channel's
    outputs are to be multiplied, (H,) fp32. The last part is what the one before sends into the next block."""
    n = P * M
    taps, parts = reach(k.shape[1], n, blocks)
    k = with_skip(k, skip, taps * n)
    k = torch.nn.functional.pad(k, (0, taps * n - k.shape[1])).unflatten(1, (taps, n))
    values = torch.fft.ifft(k * turn(n, k.device), norm="forward")
    values = torch.nn.functional.pad(values, (0, 0, 0, parts - taps))
    values[:, 1:] -= 1j * values[:, :-1].clone()
    if transposed:  # what a correlation sends past either end is imaginary, too
        values = values.conj_physical()
    values = torch.view_as_real(values.unflatten(2, (M, P))).permute(0, 1, 4, 3, 2)  # s = f + P g
    _, exponent = torch.frexp(values.abs().amax((1, 2, 3, 4)))
    root = 2.0 ** (n.bit_length() // 2)  # about sqrt(n), by which a transform spreads
    scaled = torch.ldexp(values, -exponent[:, None, None, None, None]) / root
    return scaled.half().contiguous(), torch.ldexp(torch.full_like(k[:, 0, 0], root / n), exponent)


def reach(taps: int, n: int, blocks: int) -> tuple[int, int]:
    """Parts of a filter within `blocks` blocks of n tokens, and of K', which reaches one block further."""
    parts = min(triton.cdiv(taps, n), blocks)
    return parts, min(parts + 1, blocks)


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


def outputs(s: Spectra, k, skip, gate1, gate2=None, *, like, transposed=False) -> Any:
    """gate1 * conv(x, k) of the stream x that has the spectra s, and with gate2 also gate2 * the same; laid out as
    `like`."""
    batch, channels, length = like.shape
    blocks, P, M = s.values.shape[2], *s.values.shape[4:]
    values, scales = filter_values(k, skip, P, M, blocks, transposed)
    y1 = torch.empty_like(like)
    y2 = None if gate2 is None else torch.empty_like(like)
    tensors, strides = pointers(like, gate1, gate2, y1, y2)
    outputs_kernel[shares(channels, batch * blocks)](
        s.values, s.ups, values, scales, factors(P, M, like.device), *tensors[1:], batch, length, blocks,
        values.shape[1], *strides[3:], GATED1=gate1 is not None, SECOND=gate2 is not None, AHEAD=transposed,
        P=P, M=M, num_warps=max(1, P // 16), num_stages=1,
    )  # fmt: skip
    return y1 if y2 is None else (y1, y2)


def convolve(x, k, skip, gate, gate1, gate2=None, *, transposed=False) -> Any:
    """gate1 * conv(gate * x, k), and with gate2 also gate2 * the same. x (B, H, L) fp16 or bf16, k (H, K)."""
    return outputs(spectra(x, gate), k, skip, gate1, gate2, like=x, transposed=transposed)
