"""Long convolution by transforms of blocks of tokens (`spectra.py`), 8 P + 16 M operations a token for blocks of P M.

A sequence is blocks of n tokens with spectra S_0, S_1, ..., its filter parts K_0, K_1, ... of n taps. What a product
sends into the next block is its imaginary part, so block b of the output is

    Y_b = sum_d S_(b - d) K'_d,    K'_d = K_d - j K_(d - 1)

with one transform there and one back for each block, whatever their number; parts beyond the last tap do not exist. A
correlation sums over the blocks after b, with conj(K'). Spectra travel through memory; backward needs those of input
and cotangent once for all of its products.
"""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.fft_conv.spectra import Spectra, factors, read_tables, shares, spectra, turn
from kernels.fft_conv.toeplitz import pointers, with_skip

LONGEST = 16 * 8192  # tokens: blocks meet in pairs, so in the end cuFFT is the faster


@triton.jit
def outputs_kernel(
    spectra, ups, values, scales, tables, gate1, gate2, y1, y2, B, L, blocks, parts,
    gate1_b, gate1_h, gate1_t, gate2_b, gate2_h, gate2_t, y1_b, y1_h, y1_t, y2_b, y2_h, y2_t,
    GATED1: tl.constexpr, SECOND: tl.constexpr, AHEAD: tl.constexpr, P: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """y1 = gate1 * (the inverse of sum_d S_(b - d) K'_d), and where SECOND y2 with gate2, of one channel and a share of
    its blocks. AHEAD: of S_(b + d) conj(K'_d)."""
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
            if AHEAD:
                real += s_real * k_real + s_imag * k_imag
                imag += s_imag * k_real - s_real * k_imag
            else:
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


def filter_values(k, skip, s: Spectra) -> tuple[torch.Tensor, torch.Tensor]:
    """K' at the roots of the spectra s, of the taps within their length: (H, parts, re | im, P, M) fp16, each channel
    scaled by a power of two; and by what a channel's outputs are to be multiplied, (H,) fp32. The last part is what
    the one before sends into the next block."""
    blocks, P, M = s.values.shape[2], *s.values.shape[4:]
    n = P * M
    taps, parts = reach(k.shape[1], n, blocks)
    k = with_skip(k, skip, s.length)  # those beyond must not count in the scale
    k = torch.nn.functional.pad(k, (0, taps * n - k.shape[1])).unflatten(1, (taps, n))
    values = torch.fft.ifft(k * turn(n, k.device), norm="forward")
    values = torch.nn.functional.pad(values, (0, 0, 0, parts - taps))
    values[:, 1:] -= 1j * values[:, :-1]
    values = torch.view_as_real(values.unflatten(2, (M, P))).permute(0, 1, 4, 3, 2)  # s = f + P g
    _, exponent = torch.frexp(values.abs().amax((1, 2, 3, 4)))
    root = 2.0 ** (n.bit_length() // 2)  # about sqrt(n), by which a transform spreads
    scaled = torch.ldexp(values, -exponent[:, None, None, None, None]) / root
    return scaled.half().contiguous(), torch.ldexp(torch.full_like(k[:, 0, 0], root / n), exponent)


def reach(taps: int, n: int, blocks: int) -> tuple[int, int]:
    """Parts of a filter within `blocks` blocks of n tokens, and of K', which reaches one block further."""
    parts = min(triton.cdiv(taps, n), blocks)
    return parts, min(parts + 1, blocks)


def outputs(s: Spectra, k: tuple[torch.Tensor, torch.Tensor], gate1, gate2=None, *, like, transposed=False) -> Any:
    """gate1 * conv(x, k), or `transposed` the correlation, of the stream x that has the spectra s with the filter whose
    `filter_values` are k; with gate2 also gate2 * the same. Laid out as `like`."""
    batch, channels, length = like.shape
    blocks, P, M = s.values.shape[2], *s.values.shape[4:]
    values, scales = k
    y1 = torch.empty_like(like)
    y2 = None if gate2 is None else torch.empty_like(like)
    tensors, strides = pointers(like, gate1, gate2, y1, y2)
    outputs_kernel[shares(channels, batch * blocks)](
        s.values, s.ups, values, scales, factors(P, M, like.device), *tensors[1:], batch, length, blocks,
        values.shape[1], *strides[3:], GATED1=gate1 is not None, SECOND=gate2 is not None, AHEAD=transposed,
        P=P, M=M, num_warps=max(1, P // 16), num_stages=1,
    )  # fmt: skip
    return y1 if y2 is None else (y1, y2)


def convolve(x, k, skip, gate, gate1) -> torch.Tensor:
    """gate1 * conv(gate * x, k). x (B, H, L) fp16 or bf16, k (H, K)."""
    s = spectra(x, gate)
    return outputs(s, filter_values(k, skip, s), gate1, like=x)
