"""Implicit filters in Triton: a block of tokens a program, whose few features are a vector each.

Sums over tokens, the gradients of all weights, are partial sums a program, in one row of memory:

    frequency of each layer (3 F), then W and b of each layer, then out (C, F), then decay (C,)

They are added afterwards, in a fixed order.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import bucket, operator, sum_shares

TOKENS = 32  # a program
# pi in three parts, of which the first two have few bits, so that their multiples are exact
PI, PI_BEYOND, PI_REST = tl.constexpr(3.140625), tl.constexpr(9.675025939941406e-4), tl.constexpr(1.5099579909783764e-7)


@triton.jit
def _sine(x, COSINE: tl.constexpr):
    """sin(x) or cos(x): half turns are taken off, then Taylor's polynomial (within 6e-8 up to a quarter turn). CUDA's
    own keeps a table in local memory for angles beyond 1e5, which these lose digits at."""
    turns = tl.floor(x * 0.3183098861837907 + (0.0 if COSINE else 0.5))  # of pi; the cosine's are half a one further
    sign = 1.0 - 2.0 * (turns - 2.0 * tl.floor(turns * 0.5))
    if COSINE:
        turns += 0.5
        sign = -sign
    x = ((x - turns * PI) - turns * PI_BEYOND) - turns * PI_REST
    x = tl.minimum(tl.maximum(x, -1.6), 1.6)  # where no digit is left, from 1e7 on
    y = x * x
    series = -1 / 5040 + y * (1 / 362880 - y * (1 / 39916800))
    return sign * (x + x * y * (-1 / 6 + y * (1 / 120 + y * series)))


@triton.jit
def _angles(z, weight, bias, N: tl.constexpr, F: tl.constexpr):
    """W z + b: a vector over the tokens for each of F outputs, as z is for each of N inputs."""
    new = ()
    for o in tl.static_range(F):
        total = 0 * z[0] + tl.load(bias + o).to(tl.float32)
        for i in tl.static_range(N):
            total += z[i] * tl.load(weight + o * N + i).to(tl.float32)
        new += (total,)
    return new


@triton.jit
def _sines(angles, frequency, F: tl.constexpr):
    new = ()
    for o in tl.static_range(F):
        new += (_sine(tl.load(frequency + o).to(tl.float32) * angles[o], False),)
    return new


@triton.jit
def _features(position, t, L, E: tl.constexpr):
    new = ()
    for e in tl.static_range(E):
        new += (tl.load(position + t * E + e, mask=t < L, other=0.0).to(tl.float32),)
    return new


@triton.jit
def _channels(z, out, decay, c, t, L, C, F: tl.constexpr):
    """exp(-decay t), and the filters' taps, both (channels, tokens)."""
    here = c < C
    fading = tl.exp(-tl.load(decay + c, mask=here, other=0.0).to(tl.float32)[:, None] * tl.minimum(t, L - 1)[None, :])
    taps = tl.zeros(fading.shape, tl.float32)
    for o in tl.static_range(F):
        taps += tl.load(out + c * F + o, mask=here, other=0.0).to(tl.float32)[:, None] * z[o][None, :]
    return fading, taps * fading


@triton.jit
def forward_kernel(
    position, frequency, w0, b0, w1, b1, w2, b2, out, decay, h, L, C,
    E: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    z = _sines(_angles(_features(position, t, L, E), w0, b0, E, F), frequency, F)
    z = _sines(_angles(z, w1, b1, F, F), frequency, F)
    z = _sines(_angles(z, w2, b2, F, F), frequency, F)
    _, taps = _channels(z, out, decay, c, t, L, C, F)
    place = h + c.to(tl.int64)[:, None] * L + t[None, :]
    tl.store(place, taps, mask=(c < C)[:, None] & (t < L)[None, :])


@triton.jit
def _back(dz, angles, z, weight, frequency, sums, of_frequency, N: tl.constexpr, F: tl.constexpr):
    """The gradient of a layer's inputs z from that of its outputs; the sums for W and b into `sums`."""
    new = ()
    for _ in tl.static_range(N):
        new += (0 * z[0],)
    for o in tl.static_range(F):
        f = tl.load(frequency + o).to(tl.float32)
        slope = dz[o] * _sine(f * angles[o], True)
        tl.store(of_frequency + o, tl.sum(slope * angles[o], 0))
        slope *= f
        tl.store(sums + F * N + o, tl.sum(slope, 0))
        added = ()
        for i in tl.static_range(N):
            tl.store(sums + o * N + i, tl.sum(slope * z[i], 0))
            added += (new[i] + slope * tl.load(weight + o * N + i).to(tl.float32),)
        new = added
    return new


@triton.jit
def backward_kernel(
    dh, position, frequency, w0, b0, w1, b1, w2, b2, out, decay, dposition, partial, L, C, SIZE,
    E: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dposition, and this program's sums, a row of partial (programs, SIZE)."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    z0 = _features(position, t, L, E)
    angles1 = _angles(z0, w0, b0, E, F)
    z1 = _sines(angles1, frequency, F)
    angles2 = _angles(z1, w1, b1, F, F)
    z2 = _sines(angles2, frequency, F)
    angles3 = _angles(z2, w2, b2, F, F)
    z3 = _sines(angles3, frequency, F)
    partial += tl.program_id(0).to(tl.int64) * SIZE
    of_0 = partial + 3 * F
    of_1 = of_0 + F * (E + 1)
    of_2 = of_1 + F * (F + 1)
    of_out = of_2 + F * (F + 1)
    dz = ()
    for _ in tl.static_range(F):
        dz += (tl.zeros((BT,), tl.float32),)
    for first in range(0, C, BC):
        c = first + tl.arange(0, BC)
        fading, taps = _channels(z3, out, decay, c, t, L, C, F)
        place = dh + c.to(tl.int64)[:, None] * L + t[None, :]
        gradient = tl.load(place, mask=(c < C)[:, None] & (t < L)[None, :], other=0.0)
        tl.store(of_out + C * F + c, -tl.sum(gradient * taps * t[None, :], 1), mask=c < C)
        gradient *= fading
        new = ()
        for o in tl.static_range(F):
            tl.store(of_out + c * F + o, tl.sum(gradient * z3[o][None, :], 1), mask=c < C)
            weight = tl.load(out + c * F + o, mask=c < C, other=0.0).to(tl.float32)
            new += (dz[o] + tl.sum(gradient * weight[:, None], 0),)
        dz = new
    dz = _back(dz, angles3, z2, w2, frequency, of_2, partial + 2 * F, F, F)
    dz = _back(dz, angles2, z1, w1, frequency, of_1, partial + F, F, F)
    dz = _back(dz, angles1, z0, w0, frequency, of_0, partial, E, F)
    for e in tl.static_range(E):
        tl.store(dposition + t * E + e, dz[e], mask=t < L)


def tiling(channels: int) -> dict[str, int]:
    """Left to itself the assembler aims at fewer registers and spills a few."""
    block = bucket(channels, 16, 64)
    return {"BT": TOKENS, "BC": block, "num_warps": max(1, block // 32), "maxnreg": 255}


@operator("mad::implicit_filter")
def forward(
    position: torch.Tensor, frequency: torch.Tensor, w0: torch.Tensor, b0: torch.Tensor, w1: torch.Tensor,
    b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor, out: torch.Tensor, decay: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """All contiguous -> (C, L), fp32."""
    (length, inputs), (channels, width) = position.shape, out.shape
    h = position.new_empty(channels, length, dtype=torch.float32)
    options = tiling(channels)
    forward_kernel[(triton.cdiv(length, options["BT"]), triton.cdiv(channels, options["BC"]))](
        position, frequency, w0, b0, w1, b1, w2, b2, out, decay, h, length, channels, E=inputs, F=width, **options
    )
    return h


@forward.register_fake
def _(position, frequency, w0, b0, w1, b1, w2, b2, out, decay):
    return position.new_empty(out.shape[0], position.shape[0], dtype=torch.float32)


@operator("mad::implicit_filter_backward")
def backward(
    dh: torch.Tensor, position: torch.Tensor, frequency: torch.Tensor, w0: torch.Tensor, b0: torch.Tensor,
    w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor, out: torch.Tensor, decay: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradient of position, and all others in one row, fp32."""
    (length, inputs), (channels, width) = position.shape, out.shape
    options = tiling(channels)
    programs, size = triton.cdiv(length, options["BT"]), row(inputs, width, channels)
    dposition = torch.empty_like(position, dtype=torch.float32)
    partial = position.new_empty(programs, size, dtype=torch.float32)
    backward_kernel[(programs,)](
        dh, position, frequency, w0, b0, w1, b1, w2, b2, out, decay, dposition, partial, length, channels, size,
        E=inputs, F=width, **options,
    )  # fmt: skip
    return dposition, sum_shares(partial)


@backward.register_fake
def _(dh, position, frequency, w0, b0, w1, b1, w2, b2, out, decay):
    size = row(position.shape[1], *reversed(out.shape))
    return torch.empty_like(position, dtype=torch.float32), position.new_empty(size, dtype=torch.float32)


def row(inputs: int, width: int, channels: int) -> int:
    """Numbers in a row of partial sums."""
    return 3 * width + width * (inputs + 1) + 2 * width * (width + 1) + channels * (width + 1)


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def differentiate(ctx, dh):
    tensors = ctx.saved_tensors
    position, frequency, *weights = tensors
    dposition, sums = backward(dh.contiguous(), *tensors)
    width = len(frequency)
    of_frequency, *others = sums.split([3 * width, *(t.numel() for t in weights)])
    gradients = (part.view(t.shape).to(t.dtype) for part, t in zip(others, weights, strict=True))
    return dposition.to(position.dtype), of_frequency.view(3, width).sum(0).to(frequency.dtype), *gradients


forward.register_autograd(differentiate, setup_context=save)


def implicit_filter(*tensors: torch.Tensor) -> torch.Tensor:
    """See kernels.implicit_filter: position, frequency, W and b of three layers, out, decay."""
    return forward(*(t.contiguous() for t in tensors))
