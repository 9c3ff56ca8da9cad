"""Long convolution by a whole Fourier transform a program: order-2 Monarch, a sequence never leaves the chip.

Polynomials are multiplied at the n roots x_s = exp(2 pi j (s + 1/4) / n) of x^n = j: what lies beyond x^(n - 1) comes
out imaginary, so real sequences need neither padding nor a partner to be packed with. With n = P M, token t = p M + i
and root s = f + P g, a transform is two products with small matrices and a twiddle between them:

    A[f, i] = sum_p exp(2 pi j (f + 1/4) p / P) x[p, i]
    S[f, g] = sum_i exp(2 pi j g i / M) (exp(2 pi j (f + 1/4) i / n) A[f, i])

and its inverse is the same backwards. That is 8 P + 16 M operations a token for a convolution, and memory sees each
stream once; the transform over blocks (`blocks.py`) carries two spectra through it.

Precision: products are fp16 with fp32 sums whatever the data's half type. A program sees a whole sequence, so it scales
it by the power of two that brings its largest element to 1, exactly, and back at the end: fp16 then neither overflows
nor loses bits, and cosines in it are eight times as precise as in bf16, so they need no low halves.
"""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl

from kernels.fft_conv.toeplitz import pointers, with_skip
from kernels.tiles import bucket

SIZES = {4096: (64, 64), 8192: (128, 64)}  # tokens: P, M
LONGER_THAN, LONGEST = 2048, 8192  # tokens: below, a Toeplitz product is faster; beyond, registers do not hold them
PROGRAMS = 132 * 8  # several for each SM of an H100: the tables are read once a program


@triton.jit
def _scale(w):
    """2^-e and 2^e with 2^e <= max |w| < 2^(e + 1)."""
    most = tl.max(tl.max(tl.abs(w), 1), 0)
    e = tl.minimum((most.to(tl.int32, bitcast=True) >> 23) & 0xFF, 253)
    return ((254 - e) << 23).to(tl.float32, bitcast=True), (e << 23).to(tl.float32, bitcast=True)


@triton.jit
def _transform(real, imag, w, first, second, SIZE: tl.constexpr):
    """Onto the real and the imaginary part of S, fp32, what some columns i of the tokens, w (P, columns) fp16, give."""
    m_real, m_imag, m_minus, twiddle = second
    a_real = tl.dot(first[0], w)
    a_imag = tl.dot(first[1], w)
    twiddle_real = tl.load(twiddle)  # as often as it is needed: it would not fit into registers beside the data
    twiddle_imag = tl.load(twiddle + SIZE)
    turned_real = (a_real * twiddle_real - a_imag * twiddle_imag).to(tl.float16)
    turned_imag = (a_real * twiddle_imag + a_imag * twiddle_real).to(tl.float16)
    real = tl.dot(turned_imag, m_minus, tl.dot(turned_real, m_real, real))
    imag = tl.dot(turned_imag, m_real, tl.dot(turned_real, m_imag, imag))
    return real, imag


@triton.jit
def _first(tables, P: tl.constexpr):
    """Cosines and sines [f, p] of the first factor."""
    place = tables + tl.arange(0, P)[:, None] * P + tl.arange(0, P)[None, :]
    return tl.load(place), tl.load(place + P * P)


@triton.jit
def _second(tables, i, g, P: tl.constexpr, M: tl.constexpr):
    """Cosines, sines and minus sines [i, g] of the second, and where the twiddle's cosines are, [f, i]."""
    place = tables + 4 * P * P + tl.trans(i) * M + g
    sines = tl.load(place + M * M)
    return tl.load(place), sines, -sines, tables + 4 * P * P + 2 * M * M + tl.arange(0, P)[:, None] * M + i


@triton.jit
def convolve_kernel(
    x, gate, tables, values, scales, gate1, gate2, y1, y2, B, L,
    x_b, x_h, x_t, gate_b, gate_h, gate_t,
    gate1_b, gate1_h, gate1_t, gate2_b, gate2_h, gate2_t, y1_b, y1_h, y1_t, y2_b, y2_h, y2_t,
    GATED: tl.constexpr, GATED1: tl.constexpr, SECOND: tl.constexpr, P: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """y1 = gate1 * conv(gate * x), and where SECOND y2 with gate2, of one channel and a share of the batch."""
    h = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, P)[:, None]
    i = tl.arange(0, M)[None, :]
    token = f * M + i
    inside = token < L
    first = _first(tables, P)
    second = _second(tables, i, i, P, M)
    m_real, m_imag, m_minus, twiddle = second
    back = tables + 2 * P * P + f * P + tl.arange(0, P)[None, :]
    c_back = tl.load(back)  # [p, f]
    s_back = tl.load(back + P * P)
    scale = tl.load(scales + h)
    for row in range(tl.program_id(1), B, tl.num_programs(1)):
        b = tl.cast(row, tl.int64)
        w = tl.load(x + b * x_b + h * x_h + token * x_t, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            w *= tl.load(gate + b * gate_b + h * gate_h + token * gate_t, mask=inside, other=0.0).to(tl.float32)
        down, up = _scale(w)
        zero = tl.zeros((P, M), tl.float32)
        real, imag = _transform(zero, zero, (w * down).to(tl.float16), first, second, P * M)
        tl.debug_barrier()  # else the filter is loaded earlier, and does not fit into registers
        k_real = tl.load(values + h * 2 * P * M + token)
        k_imag = tl.load(values + h * 2 * P * M + P * M + token)
        y_real = (real * k_real - imag * k_imag).to(tl.float16)
        y_imag = (real * k_imag + imag * k_real).to(tl.float16)
        real = tl.dot(y_imag, m_imag, tl.dot(y_real, m_real))
        imag = tl.dot(y_real, m_minus, tl.dot(y_imag, m_real))
        twiddle_real = tl.load(twiddle)
        twiddle_imag = tl.load(twiddle + P * M)
        y_real = (real * twiddle_real + imag * twiddle_imag).to(tl.float16)
        y_imag = (imag * twiddle_real - real * twiddle_imag).to(tl.float16)
        y = tl.dot(s_back, y_imag, tl.dot(c_back, y_real)) * (up * scale)
        out = y
        if GATED1:
            out = y * tl.load(gate1 + b * gate1_b + h * gate1_h + token * gate1_t, mask=inside, other=0.0)
        tl.store(y1 + b * y1_b + h * y1_h + token * y1_t, out.to(y1.dtype.element_ty), mask=inside)
        if SECOND:
            out = y * tl.load(gate2 + b * gate2_b + h * gate2_h + token * gate2_t, mask=inside, other=0.0)
            tl.store(y2 + b * y2_b + h * y2_h + token * y2_t, out.to(y2.dtype.element_ty), mask=inside)


@triton.jit
def _halves(
    x, gate, at, gate_at, half, gate_half, inside, inside1, first, second, second1,
    GATED: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """S of gate * x, but for the power of two that comes third. x and gate at `at`, and `half` a block further."""
    w = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    w1 = tl.load(x + half + at, mask=inside1, other=0.0).to(tl.float32)
    if GATED:
        w *= tl.load(gate + gate_at, mask=inside, other=0.0).to(tl.float32)
        w1 *= tl.load(gate + gate_half + gate_at, mask=inside1, other=0.0).to(tl.float32)
    down, up = _scale(tl.maximum(tl.abs(w), tl.abs(w1)))
    zero = tl.zeros((P, BG), tl.float32)
    real, imag = _transform(zero, zero, (w * down).to(tl.float16), first, second, SIZE)
    real, imag = _transform(real, imag, (w1 * down).to(tl.float16), first, second1, SIZE)
    return real, imag, up


@triton.jit
def taps_kernel(
    x, gate, dy, gate1, tables, partial, B, H, L,
    x_b, x_h, x_t, gate_b, gate_h, gate_t, dy_b, dy_h, dy_t, gate1_b, gate1_h, gate1_t,
    GATED: tl.constexpr, GATED1: tl.constexpr, P: tl.constexpr, M: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """partial[share, h, re | im, f, g]: the sum over a share of the batch of conj(S of gate * x) (S of gate1 * dy), in
    BG columns g. Tokens come in two halves of each block: both spectra and the sums would else not fit into registers.
    """
    h = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, P)[:, None]
    i = tl.arange(0, M // 2)[None, :]
    g = tl.program_id(2) * BG + tl.arange(0, BG)[None, :]
    token = f * M + i
    inside = token < L
    inside1 = token + M // 2 < L
    first = _first(tables, P)
    second = _second(tables, i, g, P, M)
    second1 = _second(tables, M // 2 + i, g, P, M)
    total_real = tl.zeros((P, BG), tl.float32)
    total_imag = tl.zeros((P, BG), tl.float32)
    for row in range(tl.program_id(1), B, tl.num_programs(1)):
        b = tl.cast(row, tl.int64)
        x_real, x_imag, up = _halves(
            x + b * x_b + h * x_h, gate + b * gate_b + h * gate_h, token * x_t, token * gate_t, M // 2 * x_t,
            M // 2 * gate_t, inside, inside1, first, second, second1, GATED, P * M, P, BG,
        )  # fmt: skip
        tl.debug_barrier()  # else what comes is loaded earlier, and does not fit into registers
        g_real, g_imag, up1 = _halves(
            dy + b * dy_b + h * dy_h, gate1 + b * gate1_b + h * gate1_h, token * dy_t, token * gate1_t, M // 2 * dy_t,
            M // 2 * gate1_t, inside, inside1, first, second, second1, GATED1, P * M, P, BG,
        )  # fmt: skip
        both = up * up1
        total_real += both * (x_real * g_real + x_imag * g_imag)
        total_imag += both * (x_real * g_imag - x_imag * g_real)
    place = partial + (tl.program_id(1) * H + h) * 2 * P * M + f * M + g
    tl.store(place, total_real)
    tl.store(place + P * M, total_imag)


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


def filter_values(k: torch.Tensor, skip, P: int, M: int, transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The filter at the roots, (H, re | im, P, M) fp16, each channel scaled by a power of two; and by what a channel's
    outputs are to be multiplied, (H,) fp32."""
    n = P * M
    k = with_skip(k, skip, n)
    values = torch.fft.ifft(torch.nn.functional.pad(k, (0, n - k.shape[1])) * turn(n, k.device), norm="forward")
    if transposed:  # what a correlation sends past either end is imaginary, too
        values = values.conj_physical()
    values = torch.view_as_real(values.unflatten(1, (M, P))).permute(0, 3, 2, 1)  # s = f + P g
    _, exponent = torch.frexp(values.abs().amax((1, 2, 3)))
    root = 2.0 ** (n.bit_length() // 2)  # about sqrt(n), by which a transform spreads
    scaled = torch.ldexp(values, -exponent[:, None, None, None]) / root
    return scaled.half().contiguous(), torch.ldexp(torch.full_like(k[:, 0], root / n), exponent)


def layout(length: int, channels: int, batch: int) -> tuple[int, int, dict, tuple[int, int]]:
    """P, M, the kernels' options and their grid."""
    P, M = SIZES[bucket(length, min(SIZES), max(SIZES))]
    shares = min(batch, triton.cdiv(PROGRAMS, channels))
    return P, M, {"num_warps": P // 16, "num_stages": 1}, (channels, shares)


def convolve(x, k, skip, gate, gate1, gate2=None, *, transposed=False):
    """gate1 * conv(gate * x, k), and with gate2 also gate2 * the same. x (B, H, L) fp16 or bf16, k (H, K)."""
    batch, channels, length = x.shape
    P, M, options, grid = layout(length, channels, batch)
    values, scales = filter_values(k, skip, P, M, transposed)
    y1 = torch.empty_like(x)
    y2 = None if gate2 is None else torch.empty_like(x)
    tensors, strides = pointers(x, gate, gate1, gate2, y1, y2)
    convolve_kernel[grid](
        *tensors[:2], factors(P, M, x.device), values, scales, *tensors[2:], batch, length, *strides,
        GATED=gate is not None, GATED1=gate1 is not None, SECOND=gate2 is not None, P=P, M=M, **options,
    )  # fmt: skip
    return y1 if y2 is None else (y1, y2)


def taps_gradient(x, dy, gate, gate1, taps: int) -> torch.Tensor:
    """dk (H, taps), fp32."""
    batch, channels, length = x.shape
    P, M, options, grid = layout(length, channels, batch)
    partial = torch.empty(grid[1], channels, 2, P, M, dtype=torch.float32, device=x.device)
    tensors, strides = pointers(x, gate, dy, gate1)
    taps_kernel[*grid, 2](
        *tensors, factors(P, M, x.device), partial, batch, channels, length, *strides,
        GATED=gate is not None, GATED1=gate1 is not None, P=P, M=M, BG=M // 2, **options,
    )  # fmt: skip
    values = torch.view_as_complex(partial.sum(0).permute(0, 3, 2, 1).contiguous()).flatten(1)
    n = P * M
    dk = (torch.fft.fft(values, norm="forward") * turn(n, x.device).conj()).real[:, : min(taps, length)]
    return torch.nn.functional.pad(dk, (0, taps - dk.shape[1]))
