"""Long convolution by a Fourier transform over blocks: order-2 Monarch, all of it matrix products.

Cut a sequence into P blocks of M tokens and call z the shift by a block. Input and filter are polynomials in z whose
coefficients are blocks, and their product is wanted up to z^(P - 1). So

    spread   evaluate the input at the P roots of z^P = i: one (P, P) matrix of cosines, one of sines, over the blocks
    mix      multiply by the filter's value there. Inside a block z is M steps, so a value is a Toeplitz matrix (M, M)
    gather   interpolate: the real part of the inverse matrix. The roots of z^P = i (and not 1) put what lies beyond z^P
             into the imaginary part, so real sequences need neither padding nor a partner to be packed with

That is (8 P + 8 M) L operations a sequence against L^2 for the plain Toeplitz product; the two intermediate spectra
travel through memory, in the input's type. Where a full Monarch FFT would go on to twiddle and transform inside the
blocks, the Toeplitz product takes both and the inverse in one step.

Precision: cosines and sines are split into a high and a low half, so constants are not rounded; data are, to the
input's type, once a step. Sums are fp32. Powers of two keep what is stored within fp16: a spectrum is divided by P (at
most the largest token then, and the mean that the inverse is), each channel's filter by its largest tap, and each row
of a product by its largest entry: how large one is depends on how input and filter fit together.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl

from kernels.fft_conv.toeplitz import bands_kernel, pointers, with_skip
from kernels.tiles import bucket

COLUMNS = 64  # tokens of a block that a program of spread or gather takes
LONGEST = 128 * 256  # tokens


@triton.jit
def spread_kernel(
    x, gate, table, spectrum, B, H, L,
    x_b, x_h, x_t, gate_b, gate_h, gate_t,
    GATED: tl.constexpr, REVERSED: tl.constexpr, P: tl.constexpr, M: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """spectrum[h, f, re | im, b, i] = sum_p z_f^p (gate * x)[b, h, p M + i] / P. REVERSED: from last to first."""
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(2).to(tl.int64)
    p = tl.arange(0, P)
    i = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    token = p[:, None] * M + i
    inside = token < L
    at = token
    if REVERSED:
        at = L - 1 - token
    tile = tl.load(x + b * x_b + h * x_h + at * x_t, mask=inside, other=0.0)  # (P, BC)
    if GATED:
        factor = tl.load(gate + b * gate_b + h * gate_h + at * gate_t, mask=inside, other=0.0)
        tile = (tile.to(tl.float32) * factor).to(tile.dtype)
    for part in range(2):
        for first in range(0, P, BF):
            f = first + tl.arange(0, BF)[:, None]
            row = table + part * P * P + f * P + p[None, :]
            value = tl.dot(tl.load(row), tile)
            value = tl.dot(tl.load(row + 2 * P * P), tile, value)  # the low halves
            place = spectrum + (((h * P + f) * 2 + part) * B + b) * M + i
            tl.store(place, (value * (1.0 / P)).to(spectrum.dtype.element_ty))


@triton.jit
def mix_kernel(
    spectrum, bands, unit, product, scales, B,
    P: tl.constexpr, M: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """product[hf, :, b, j] = sum_i spectrum[hf, :, b, i] T[j - i], complex, T the Toeplitz matrix of one root.

    Divided by scales[hf, j // BN, b], a power of two. T comes in units of unit[h]."""
    root = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BR + tl.arange(0, BR)[:, None]
    columns = tl.program_id(2) * BN + tl.arange(0, BN)[None, :]
    i = tl.arange(0, BK)
    real = spectrum + root * 2 * B * M + rows * M + i[None, :]
    band = bands + (root * 16 + i[:, None] % 8) * (2 * M) + (M + columns - i[:, None] // 8 * 8)
    real_real = tl.zeros((BR, BN), tl.float32)
    imag_imag = tl.zeros((BR, BN), tl.float32)
    y_imag = tl.zeros((BR, BN), tl.float32)
    for first in range(0, M, BK):
        x_real = tl.load(real + first, mask=rows < B, other=0.0)
        x_imag = tl.load(real + B * M + first, mask=rows < B, other=0.0)
        t_real = tl.load(band - first)
        t_imag = tl.load(band - first + 16 * M)
        real_real = tl.dot(x_real, t_real, real_real)
        imag_imag = tl.dot(x_imag, t_imag, imag_imag)
        y_imag = tl.dot(x_real, t_imag, y_imag)
        y_imag = tl.dot(x_imag, t_real, y_imag)
    y_real = real_real - imag_imag
    largest = tl.max(tl.maximum(tl.abs(y_real), tl.abs(y_imag)), 1, keep_dims=True)
    exponent = tl.maximum(largest, 1e-30).to(tl.int32, bitcast=True) & 0x7F800000
    inverse = (0x7F000000 - exponent).to(tl.float32, bitcast=True)
    place = product + root * 2 * B * M + rows * M + columns
    tl.store(place, (y_real * inverse).to(product.dtype.element_ty), mask=rows < B)
    tl.store(place + B * M, (y_imag * inverse).to(product.dtype.element_ty), mask=rows < B)
    scale = exponent.to(tl.float32, bitcast=True) * tl.load(unit + root // P)
    tl.store(scales + (root * (M // BN) + tl.program_id(2)) * B + rows, scale, mask=rows < B)


@triton.jit
def gather_kernel(
    product, scales, table, gate1, gate2, y1, y2, B, H, L,
    gate1_b, gate1_h, gate1_t, gate2_b, gate2_h, gate2_t, y1_b, y1_h, y1_t, y2_b, y2_h, y2_t,
    GATED1: tl.constexpr, SECOND: tl.constexpr, REVERSED: tl.constexpr,
    P: tl.constexpr, M: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y1[b, h, p M + i] = gate1 * sum_f Re(z_f^-p (scales product)[h, f, :, b, i]), and where SECOND y2 with gate2."""
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(2).to(tl.int64)
    f = tl.arange(0, P)[:, None]
    i = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    place = product + ((h * P + f) * 2 * B + b) * M + i
    scale = tl.load(scales + ((h * P + f) * (M // BN) + tl.program_id(1) * BC // BN) * B + b)  # (P, 1)
    largest = tl.maximum(tl.max(scale), 1e-37)  # of a filter of 1e-15 and no input, the scale is zero
    factor = (scale / largest).to(product.dtype.element_ty)
    real = tl.load(place) * factor  # (P, BC)
    imag = tl.load(place + B * M) * factor
    for first in range(0, P, BP):
        p = first + tl.arange(0, BP)[:, None]
        row = table + p * P + tl.arange(0, P)[None, :]  # [p, f]: the table given here is the transposed one
        y = tl.dot(tl.load(row), real)
        y = tl.dot(tl.load(row + 2 * P * P), real, y)
        y = tl.dot(tl.load(row + P * P), imag, y)
        y = tl.dot(tl.load(row + 3 * P * P), imag, y) * largest
        token = p * M + i
        inside = token < L
        at = token
        if REVERSED:
            at = L - 1 - token
        out = y
        if GATED1:
            out = y * tl.load(gate1 + b * gate1_b + h * gate1_h + at * gate1_t, mask=inside, other=0.0)
        tl.store(y1 + b * y1_b + h * y1_h + at * y1_t, out.to(y1.dtype.element_ty), mask=inside)
        if SECOND:
            out = y * tl.load(gate2 + b * gate2_b + h * gate2_h + at * gate2_t, mask=inside, other=0.0)
            tl.store(y2 + b * y2_b + h * y2_h + at * y2_t, out.to(y2.dtype.element_ty), mask=inside)


@lru_cache(maxsize=16)
def roots(blocks: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z_f^p for the P roots of z^P = i: (4, P, P) [f, p] of cosines and sines, high halves and low ones; the same
    transposed; and exact, (2 P, P) fp32."""
    f, p = torch.arange(blocks).double() + 0.25, torch.arange(blocks).double()
    angle = 2 * math.pi / blocks * torch.outer(f, p)
    exact = torch.stack([angle.cos(), angle.sin()])
    high = exact.to(dtype)
    table = torch.cat([high, (exact - high.double()).to(dtype)])
    return (
        table.to(device),
        table.transpose(1, 2).contiguous().to(device),
        exact.flatten(0, 1).float().to(device),
    )


def filter_values(
    k: torch.Tensor, skip, blocks: int, size: int, exact: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(H, P, 2, 2 M), fp32: the Toeplitz matrix of each root, entry M + d on diagonal d, in units of (H,), fp32: powers
    of two that leave no tap above 1, and so no entry above P."""
    k = with_skip(k, skip, blocks * size)
    unit = k.abs().amax(1).frexp().exponent.clamp(-126, 127).float().exp2()
    k = k / unit.unsqueeze(-1)
    k = torch.nn.functional.pad(k, (0, blocks * size - k.shape[1])).unflatten(1, (blocks, size))
    real, imag = (exact @ k).chunk(2, dim=1)  # (H, P, M) each
    angle = (torch.arange(blocks, device=k.device) + 0.25) * (2 * math.pi / blocks)
    c, s = angle.cos().unsqueeze(-1), angle.sin().unsqueeze(-1)
    below = torch.stack([real * c - imag * s, real * s + imag * c], dim=2)  # diagonals under the main one: times z
    return torch.cat([below, torch.stack([real, imag], dim=2)], dim=-1), unit


def layout(length: int, size: int | None) -> tuple[int, int]:
    """Tokens a block and blocks."""
    size = size or (128 if length <= 128 * 128 else 256)
    blocks = bucket(triton.cdiv(length, size), 16, 128)
    if blocks * size < length:
        raise ValueError(f"at most {LONGEST} tokens, got {length}")
    return size, blocks


def spread(x, gate, table: torch.Tensor, size: int, *, reverse: bool) -> torch.Tensor:
    """(H, P, 2, B, M): the blocks of gate * x evaluated at the roots, divided by P."""
    batch, channels, length = x.shape
    blocks = table.shape[1]
    spectrum = torch.empty(channels, blocks, 2, batch, size, dtype=x.dtype, device=x.device)
    tensors, strides = pointers(x, gate)
    columns = min(COLUMNS, size)
    spread_kernel[(batch, size // columns, channels)](
        *tensors, table, spectrum, batch, channels, length, *strides, GATED=gate is not None, REVERSED=reverse,
        P=blocks, M=size, BC=columns, BF=min(64, blocks),
    )  # fmt: skip
    return spectrum


def convolve(x, k, skip, gate, gate1, gate2=None, *, transposed=False, size=None):
    """gate1 * conv(gate * x, k), and with gate2 also gate2 * the same. x (B, H, L) fp16 or bf16, k (H, K)."""
    batch, channels, length = x.shape
    size, blocks = layout(length, size)
    table, transposed_table, exact = roots(blocks, x.dtype, x.device)
    values, unit = filter_values(k, skip, blocks, size, exact)
    bands = torch.empty(channels * blocks, 2, 8, 2 * size, dtype=x.dtype, device=x.device)
    bands_kernel[(channels * blocks * 2, 1)](
        values, k, bands, 2 * size, 2 * size, 0, TRANSPOSED=False, SKIP=False, BW=2 * size
    )
    spectrum = spread(x, gate, table, size, reverse=transposed)
    product = torch.empty_like(spectrum)
    rows, width = bucket(batch, 16, 128), min(128, size)
    scales = torch.empty(channels * blocks, size // width, batch, dtype=torch.float32, device=x.device)
    mix_kernel[(channels * blocks, triton.cdiv(batch, rows), size // width)](
        spectrum, bands, unit, product, scales, batch, P=blocks, M=size, BR=rows, BN=width, BK=min(32, size),
        num_warps=8 if rows >= 64 else 4,
    )  # fmt: skip
    y1 = torch.empty_like(x)
    y2 = None if gate2 is None else torch.empty_like(x)
    tensors, strides = pointers(x, gate1, gate2, y1, y2)
    columns = min(COLUMNS, size)
    gather_kernel[(batch, size // columns, channels)](
        product, scales, transposed_table, *tensors[1:], batch, channels, length, *strides[3:],
        GATED1=gate1 is not None, SECOND=gate2 is not None, REVERSED=transposed,
        P=blocks, M=size, BC=columns, BP=min(64, blocks), BN=width, num_stages=2,
    )  # fmt: skip
    return y1 if y2 is None else (y1, y2)
