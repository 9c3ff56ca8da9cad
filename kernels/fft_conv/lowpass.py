"""Convolution with the lowest frequencies of a filter alone: what is dropped is neither computed nor stored.

With n = Q M points, token t = p M + i and frequency f = a + Q c, a transform is two products with small matrices and a
twiddle between them, order-2 Monarch:

    A[a, i] = sum_p exp(2 pi j a p / Q) w[p, i]
    X[a, c] = sum_i exp(2 pi j c i / M) (exp(2 pi j a i / n) A[a, i])

Tokens are half of the points, so p stops at P = Q / 2. Dropped frequencies are columns c that do not exist, and, where
fewer than Q / 2 are kept, rows a. Sequences are real, so rows up to Q / 2 do, with columns of both signs: each stands
for -a, too. Back, the same products run in reverse order.

Spectra travel through memory, as large as what is kept. Products are as in `spectra.py`: for data of two bytes in
fp16, with fp32 sums, each tile scaled by the power of two that brings its largest element to 1; for fp32 data, and for
the filter's spectrum and its gradient in any case, three TF32 products.
"""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.fft_conv.lowpass_plan import BLOCK, LEAST, ROWS, TILE, Plan, plan, tables, weights
from kernels.fft_conv.spectra import scaling, shares
from kernels.fft_conv.toeplitz import pointers, with_skip
from kernels.tiles import bucket, precision

READ, WRITTEN = {2: TILE, 4: 2048}, {2: 4096, 4: 2048}  # most tokens of a tile, by the bytes of what is multiplied
COLUMNS = 1024  # frequencies that a program of `products_kernel` takes


@triton.jit
def _tokens(
    x, gate, start, L, x_t, gate_t,
    GATED: tl.constexpr, HALF: tl.constexpr, P: tl.constexpr, M: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Tokens p M + start + i of gate * x, (P, BI), as matrix units take them, and what products are a multiple of."""
    i = start + tl.arange(0, BI)[None, :]
    token = tl.arange(0, P)[:, None] * M + i
    inside = (i < M) & (token < L)
    w = tl.load(x + token * x_t, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        w *= tl.load(gate + token * gate_t, mask=inside, other=0.0).to(tl.float32)
    if HALF:
        down, up = scaling(tl.abs(w))
        return (w * down).to(tl.float16), up
    else:
        return w, 1.0


@triton.jit(do_not_specialize=["columns"])
def spectra_kernel(
    x, gate, first, twiddle, second, spectra, scales, B, L, rows, columns, width, root,
    x_b, x_h, x_t, gate_b, gate_h, gate_t,
    GATED: tl.constexpr, HALF: tl.constexpr, P: tl.constexpr, M: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    BI: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """spectra[h, b, re | im] of gate * x, of one channel and a share of its sequences; HALF: over scales[h, b]."""
    WIDE: tl.constexpr = M if M > BI else BI
    h = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BI)
    p = tl.arange(0, P)[None, :]
    for item in range(tl.program_id(1), B, tl.num_programs(1)):
        b = tl.cast(item, tl.int64)
        x_row = x + b * x_b + h * x_h
        gate_row = gate + b * gate_b + h * gate_h
        most = 0.0
        if M <= BI:
            w, most = _tokens(x_row, gate_row, 0, L, x_t, gate_t, GATED, HALF, P, M, BI)
        for top in range(0, rows, R):
            row = top + tl.arange(0, R)[:, None]
            cosines = tl.load(first + row * P + p)
            sines = tl.load(first + (rows + row) * P + p)
            for left in range(0, columns, C):
                c = left + tl.arange(0, C)[None, :]
                real = tl.zeros((R, C), tl.float32)
                imag = tl.zeros((R, C), tl.float32)
                if M > BI:
                    most = 0.0
                for start in range(0, M, BI):
                    if M > BI:
                        w, up = _tokens(x_row, gate_row, start, L, x_t, gate_t, GATED, HALF, P, M, BI)
                    a_real = tl.dot(cosines, w, input_precision=PRECISION)
                    a_imag = tl.dot(sines, w, input_precision=PRECISION)
                    place = row * WIDE + start + i[None, :]
                    turn_real = tl.load(twiddle + place)
                    turn_imag = tl.load(twiddle + rows * WIDE + place)
                    t_real = (a_real * turn_real - a_imag * turn_imag).to(w.dtype)
                    t_imag = (a_real * turn_imag + a_imag * turn_real).to(w.dtype)
                    place = (start + i[:, None]) * width + c
                    e_real = tl.load(second + place)
                    e_imag = tl.load(second + WIDE * width + place)
                    if HALF and M > BI:  # in the unit of the largest so far
                        before, most = most, tl.maximum(most, up)
                        fade = before / tl.maximum(most, 1e-37)  # of zeros
                        share = up / tl.maximum(most, 1e-37)
                        real = real * fade + tl.dot(t_imag, -e_imag, tl.dot(t_real, e_real)) * share
                        imag = imag * fade + tl.dot(t_imag, e_real, tl.dot(t_real, e_imag)) * share
                    else:
                        real = tl.dot(t_real, e_real, real, input_precision=PRECISION)
                        real = tl.dot(t_imag, -e_imag, real, input_precision=PRECISION)
                        imag = tl.dot(t_real, e_imag, imag, input_precision=PRECISION)
                        imag = tl.dot(t_imag, e_real, imag, input_precision=PRECISION)
                place = spectra + (h * B + b) * 2 * rows * columns + row * columns + c
                tl.store(place, (real * root).to(spectra.dtype.element_ty), mask=c < columns)
                tl.store(place + rows * columns, (imag * root).to(spectra.dtype.element_ty), mask=c < columns)
        if HALF:
            tl.store(scales + h * B + b, most / root)


@triton.jit(do_not_specialize=["columns"])
def outputs_kernel(
    spectra, scales, k, k_scales, first, twiddle, second, gate1, gate2, y1, y2, B, L, rows, columns, width,
    gate1_b, gate1_h, gate1_t, gate2_b, gate2_h, gate2_t, y1_b, y1_h, y1_t, y2_b, y2_h, y2_t,
    FILTERED: tl.constexpr, AHEAD: tl.constexpr, GATED1: tl.constexpr, SECOND: tl.constexpr, HALF: tl.constexpr,
    P: tl.constexpr, M: tl.constexpr, R: tl.constexpr, C: tl.constexpr, BI: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y1 = gate1 * (the sequence whose spectrum is k times `spectra`), and where SECOND y2 with gate2, of one channel
    and a share of its sequences. AHEAD: conj(k) times."""
    WIDE: tl.constexpr = M if M > BI else BI
    h = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BI)
    p = tl.arange(0, P)[:, None]
    k += h * 2 * rows * columns
    for item in range(tl.program_id(1), B, tl.num_programs(1)):
        b = tl.cast(item, tl.int64)
        for start in range(0, M, BI):
            y = tl.zeros((P, BI), tl.float32)
            for top in range(0, rows, R):
                row = top + tl.arange(0, R)[:, None]
                t_real = tl.zeros((R, BI), tl.float32)
                t_imag = tl.zeros((R, BI), tl.float32)
                for left in range(0, columns, C):
                    c = left + tl.arange(0, C)[None, :]
                    place = row * columns + c
                    s = spectra + (h * B + b) * 2 * rows * columns + place
                    s_real = tl.load(s, mask=c < columns, other=0.0)
                    s_imag = tl.load(s + rows * columns, mask=c < columns, other=0.0)
                    if FILTERED:
                        k_real = tl.load(k + place, mask=c < columns, other=0.0)
                        k_imag = tl.load(k + rows * columns + place, mask=c < columns, other=0.0)
                        if AHEAD:
                            k_imag = -k_imag
                        real = (s_real * k_real - s_imag * k_imag).to(s_real.dtype)
                        imag = (s_real * k_imag + s_imag * k_real).to(s_real.dtype)
                    else:
                        real, imag = s_real, s_imag
                    place = (start + i[:, None]) * width + c
                    e_real = tl.trans(tl.load(second + place))
                    e_imag = tl.trans(tl.load(second + WIDE * width + place))
                    t_real = tl.dot(real, e_real, t_real, input_precision=PRECISION)
                    t_real = tl.dot(imag, e_imag, t_real, input_precision=PRECISION)
                    t_imag = tl.dot(imag, e_real, t_imag, input_precision=PRECISION)
                    t_imag = tl.dot(real, -e_imag, t_imag, input_precision=PRECISION)
                place = row * WIDE + start + i[None, :]
                turn_real = tl.load(twiddle + place)
                turn_imag = tl.load(twiddle + rows * WIDE + place)
                a_real = (t_real * turn_real + t_imag * turn_imag).to(turn_real.dtype)
                a_imag = (t_imag * turn_real - t_real * turn_imag).to(turn_real.dtype)
                place = (top + tl.arange(0, R)[None, :]) * P + p
                y = tl.dot(tl.load(first + place), a_real, y, input_precision=PRECISION)
                y = tl.dot(tl.load(first + rows * P + place), a_imag, y, input_precision=PRECISION)
            if FILTERED:
                y *= tl.load(k_scales + h)
            if HALF:
                y *= tl.load(scales + h * B + b)
            token = p * M + start + i[None, :]
            inside = (start + i[None, :] < M) & (token < L)
            out = y
            if GATED1:
                place = gate1 + b * gate1_b + h * gate1_h + token * gate1_t
                out = y * tl.load(place, mask=inside, other=0.0)
            place = y1 + b * y1_b + h * y1_h + token * y1_t
            tl.store(place, out.to(y1.dtype.element_ty), mask=inside)
            if SECOND:
                place = gate2 + b * gate2_b + h * gate2_h + token * gate2_t
                out = y * tl.load(place, mask=inside, other=0.0)
                place = y2 + b * y2_b + h * y2_h + token * y2_t
                tl.store(place, out.to(y2.dtype.element_ty), mask=inside)


@triton.jit
def products_kernel(s, s_scales, g, g_scales, sums, B, size, HALF: tl.constexpr, BC: tl.constexpr):
    """sums[h, re | im] = sum_b conj(s[h, b]) g[h, b], of BC of `size` frequencies."""
    h = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BC + tl.arange(0, BC)
    real = tl.zeros((BC,), tl.float32)
    imag = tl.zeros((BC,), tl.float32)
    for b in range(0, B):
        place = (h * B + b) * 2 * size + n
        s_real = tl.load(s + place, mask=n < size, other=0.0).to(tl.float32)
        s_imag = tl.load(s + place + size, mask=n < size, other=0.0).to(tl.float32)
        g_real = tl.load(g + place, mask=n < size, other=0.0).to(tl.float32)
        g_imag = tl.load(g + place + size, mask=n < size, other=0.0).to(tl.float32)
        if HALF:
            both = tl.load(s_scales + h * B + b) * tl.load(g_scales + h * B + b)
            s_real *= both
            s_imag *= both
        real += s_real * g_real + s_imag * g_imag
        imag += s_real * g_imag - s_imag * g_real
    place = h * 2 * size + n
    tl.store(sums + place, real, mask=n < size)
    tl.store(sums + place + size, imag, mask=n < size)


class Spectra(NamedTuple):
    """Of a stream: (H, B, re | im, rows, columns), fp32, or in fp16 and what sequences are to be multiplied by (H, B),
    fp32."""

    values: torch.Tensor
    scales: torch.Tensor
    plan: Plan


def schedule(p: Plan, dtype: torch.dtype, device: torch.device, tile: dict[int, int]) -> tuple[tuple, dict[str, Any]]:
    """Tables and constants of a launch in fp16 or fp32. Where registers hold them a tile is whole rows of tokens: a
    program then reads its sequence once."""
    size = dtype.itemsize
    sizes = {"P": p.P, "M": p.M, "R": ROWS, "C": min(p.width, BLOCK[size]), "BI": bucket(p.M, LEAST, tile[size] // p.P)}
    options = {"HALF": size == 2, "PRECISION": precision(dtype), "num_warps": 4, "num_stages": 1}
    return tables(p, dtype, device), sizes | options


def spectra(x: torch.Tensor, gate: torch.Tensor | None, p: Plan) -> Spectra:
    """Of gate * x, (B, H, L)."""
    batch, channels, length = x.shape
    dtype = torch.float32 if x.dtype == torch.float32 else torch.float16
    made, options = schedule(p, dtype, x.device, READ)
    values = x.new_empty(channels, batch, 2, p.rows, p.columns, dtype=dtype)
    scales = values if dtype == torch.float32 else x.new_empty(channels, batch, dtype=torch.float32)
    root = 1.0 if dtype == torch.float32 else 2.0 ** -(p.points.bit_length() // 2)  # sqrt(n): a transform spreads so
    tensors, strides = pointers(x, gate)
    spectra_kernel[shares(channels, batch)](
        *tensors, *made, values, scales, batch, length, p.rows, p.columns, p.width, root, *strides,
        GATED=gate is not None, **options,
    )  # fmt: skip
    return Spectra(values, scales, p)


def filter_values(k, skip, length: int, p: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The filter's spectrum times what a frequency weighs on the way back, (H, re | im, rows, columns) fp32, each
    channel scaled by a power of two; and by what a channel's outputs are to be multiplied, (H,) fp32."""
    values = spectra(with_skip(k, skip, length).unsqueeze(0), None, p).values.squeeze(1) * weights(p, k.device)
    _, exponent = torch.frexp(values.abs().amax((1, 2, 3)))
    ones = torch.ones(k.shape[0], device=k.device)
    return torch.ldexp(values, -exponent[:, None, None, None]), torch.ldexp(ones, exponent)


def outputs(s: Spectra, k: tuple[torch.Tensor, torch.Tensor] | None, gate1, gate2=None, *, like, ahead=False) -> Any:
    """gate1 * conv(x, k), or `ahead` the correlation, of the stream x that has the spectra s with the filter whose
    `filter_values` are k. With gate2 also gate2 * the same. Laid out as `like`. Without k, x itself from fp32 spectra
    that are weighed."""
    batch, channels, length = like.shape
    p = s.plan
    made, options = schedule(p, s.values.dtype, like.device, WRITTEN)
    y1 = torch.empty_like(like)
    y2 = None if gate2 is None else torch.empty_like(like)
    tensors, strides = pointers(like, gate1, gate2, y1, y2)
    outputs_kernel[shares(channels, batch)](
        s.values, s.scales, *(k or (s.values, s.scales)), *made, *tensors[1:], batch, length, p.rows, p.columns,
        p.width, *strides[3:], FILTERED=k is not None, AHEAD=ahead, GATED1=gate1 is not None,
        SECOND=gate2 is not None, **options,
    )  # fmt: skip
    return y1 if y2 is None else (y1, y2)


def convolve(x, k, skip, gate, gate1, keep: int) -> torch.Tensor:
    """gate1 * conv(gate * x, k with its frequencies below `keep` alone). x (B, H, L), k (H, K)."""
    p = plan(x.shape[2], keep)
    return outputs(spectra(x, gate, p), filter_values(k, skip, x.shape[2], p), gate1, like=x)


def taps_gradient(s: Spectra, g: Spectra, taps: int, length: int) -> torch.Tensor:
    """dk (H, taps), fp32, of the convolution of what has the spectra s, for the cotangent that has g."""
    channels, batch, _, rows, columns = s.values.shape
    sums = s.values.new_empty(channels, 2, rows, columns, dtype=torch.float32)
    products_kernel[(channels, triton.cdiv(rows * columns, COLUMNS))](
        s.values, s.scales, g.values, g.scales, sums, batch, rows * columns, HALF=s.values is not s.scales, BC=COLUMNS
    )
    sums = (sums * weights(s.plan, sums.device)).unsqueeze(1)
    like = sums.new_empty(1, channels, min(taps, length))
    dk = outputs(Spectra(sums, sums, s.plan), None, None, like=like).squeeze(0)
    return torch.nn.functional.pad(dk, (0, taps - dk.shape[1]))  # taps beyond the sequence have no effect
