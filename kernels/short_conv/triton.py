"""Short convolution in Triton: memory-bound, so each tensor is read once from HBM and taps are summed in fp32.

The general form, for any type, width, strides and channel multiplier; half precision with few taps goes by `words.py`.
A program owns a block of channels and walks over a share of the batch. Gradients of the taps are partial sums a share,
added afterwards in a fixed order: no atomics, the same bits every time.

Outputs may be cut into up to three tensors, the streams of a gated projection: what comes back to them as gradients
then need not be joined first.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.activations import activate, slope
from kernels.short_conv import words
from kernels.tiles import bucket, operator, sum_shares

SPLITS = 32  # shares of the batch in the backward: enough programs for every SM, few partial sums


@triton.jit
def forward_kernel(
    u, w, bias, input_bias, dy, y,
    H, C, L, FIRST, u_b, u_h, u_t, dy_b, dy_h, dy_t, y_b, y_h, y_t,
    K: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr,
    FAR: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """y = activation(conv), or where SLOPE the gradient before the activation, dy * activation'(conv). Output c reads
    channel (FIRST + c) mod H."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)[:, None]
    t = tl.program_id(2) * BT + tl.arange(0, BT)[None, :]
    b = tl.program_id(0).to(tl.int64)
    if FAR:
        c, t = c.to(tl.int64), t.to(tl.int64)
    live = c < C
    z = tl.zeros((BC, BT), tl.float32)
    if BIAS:
        z += tl.load(bias + c, mask=live, other=0.0).to(tl.float32)
    row = u + b * u_b + (FIRST + c) % H * u_h
    if ADD:
        added = tl.load(input_bias + (FIRST + c) % H).to(tl.float32)
    for j in tl.static_range(K):
        tap = tl.load(w + c * K + (K - 1 - j), mask=live, other=0.0).to(tl.float32)
        past = live & (t >= j) & (t < L)
        x = tl.load(row + (t - j) * u_t, mask=past, other=0.0).to(tl.float32)
        if ADD:
            x += tl.where(past, added, 0.0)
        z += tap * x
    inside = live & (t < L)
    if SLOPE:
        g = tl.load(dy + b * dy_b + c * dy_h + t * dy_t, mask=inside, other=0.0).to(tl.float32)
        z = g * slope(z, ACTIVATION)
    else:
        z = activate(z, ACTIVATION)
    tl.store(y + b * y_b + c * y_h + t * y_t, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    u, w, input_bias, dz0, dz1, dz2, du, partial,
    B, H, C, L, u_b, u_h, u_t, dz_b, dz_h, dz_t, du_b, du_h, du_t,
    R: tl.constexpr, K: tl.constexpr, STREAMS: tl.constexpr, SUMS: tl.constexpr, ADD: tl.constexpr,
    FAR: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """du, and this share's sums in partial (shares, H, SUMS): for output h + r H dw at r (K + 1) + tap, then dbias;
    where ADD that of input_bias at R (K + 1)."""
    h = tl.program_id(0) * BC + tl.arange(0, BC)[:, None]
    if FAR:
        h = h.to(tl.int64)
    live = h < H
    column = tl.arange(0, SUMS)[None, :]
    sums = tl.zeros((BC, SUMS), tl.float32)
    if ADD:
        added = tl.load(input_bias + h, mask=live, other=0.0).to(tl.float32)
    for b0 in range(tl.program_id(1), B, tl.num_programs(1)):
        b = tl.cast(b0, tl.int64)
        x = u + b * u_b + h * u_h
        for t0 in range(0, L, BT):
            t = t0 + tl.arange(0, BT)[None, :]
            if FAR:
                t = t.to(tl.int64)
            inside = live & (t < L)
            out = tl.zeros((BC, BT), tl.float32)
            now = tl.load(x + t * u_t, mask=inside, other=0.0).to(tl.float32)
            if ADD:
                now += tl.where(inside, added, 0.0)
            for r in tl.static_range(R):
                output = h + r * H
                g = dz0 + output * dz_h
                if STREAMS > 1:
                    g = tl.where(output >= C, dz1 + (output - C) * dz_h, g)
                if STREAMS > 2:
                    g = tl.where(output >= 2 * C, dz2 + (output - 2 * C) * dz_h, g)
                g += b * dz_b
                for j in tl.static_range(K):
                    tap = tl.load(w + output * K + (K - 1 - j), mask=live, other=0.0).to(tl.float32)
                    ahead = tl.load(g + (t + j) * dz_t, mask=live & (t + j < L), other=0.0).to(tl.float32)
                    out += tap * ahead
                    sums += tl.where(column == r * (K + 1) + K - 1 - j, tl.sum(ahead * now, 1)[:, None], 0.0)
                    if j == 0:
                        sums += tl.where(column == r * (K + 1) + K, tl.sum(ahead, 1)[:, None], 0.0)
            if ADD:
                sums += tl.where(column == R * (K + 1), tl.sum(tl.where(inside, out, 0.0), 1)[:, None], 0.0)
            tl.store(du + b * du_b + h * du_h + t * du_t, out.to(du.dtype.element_ty), mask=inside)
    tl.store(partial + (tl.program_id(1) * H + h) * SUMS + column, sums, mask=live)


def tile(u: torch.Tensor, elements: int) -> tuple[int, int]:
    """Channels and tokens of a program: long in the direction in which memory runs."""
    tokens = bucket(u.shape[2], 16, 32 if u.stride(1) == 1 else 512)
    return max(1, elements // tokens), tokens


def far(*tensors: torch.Tensor) -> bool:
    """Whether a sequence of one of them has elements 2^31 or more apart: 64-bit offsets cost registers."""
    return any((t.shape[1] - 1) * t.stride(1) + (t.shape[2] - 1) * t.stride(2) >= 1 << 31 for t in tensors)


def new_outputs(u: torch.Tensor, outputs: int) -> torch.Tensor:
    """(B, outputs, L), batch and channels in u's order in memory."""
    batch, channels, length = u.shape
    if outputs == channels:
        return torch.empty_like(u)
    if u.stride(1) > u.stride(0):
        return u.new_empty(outputs, batch, length).transpose(0, 1)
    return u.new_empty(batch, outputs, length)


def launch_forward(u, w, bias, input_bias, dy, y: torch.Tensor, first: int, activation: str) -> None:
    """Into y outputs `first` and on, as many as w has; or with dy their gradient before the activation."""
    if words.forward(u, w, bias, input_bias, dy, [y], first, activation):
        return
    batch, channels, length = u.shape
    rows, tokens = tile(u, 2048)
    grid = (batch, triton.cdiv(w.shape[0], rows), triton.cdiv(length, tokens))
    dy_like = y if dy is None else dy
    forward_kernel[grid](
        u, w, bias, input_bias, dy, y, channels, w.shape[0], length, first,
        *u.stride(), *dy_like.stride(), *y.stride(),
        K=w.shape[1], ACTIVATION=activation, SLOPE=dy is not None, BIAS=bias is not None, ADD=input_bias is not None,
        FAR=far(u, dy_like, y), BC=rows, BT=tokens,
    )  # fmt: skip


def streams_of(u, w, bias, input_bias, dys: Sequence[torch.Tensor | None], activation: str) -> list[torch.Tensor]:
    """The outputs, a tensor a stream, in one launch where that can be; or with dys their gradients before the
    activation."""
    outputs = w.shape[0] // len(dys)
    ys = [new_outputs(u, outputs) for _ in dys]
    if any(dy is not None for dy in dys) or not words.forward(u, w, bias, input_bias, None, ys, 0, activation):
        ws, biases = w.split(outputs), [None] * len(dys) if bias is None else bias.split(outputs)
        for s, (taps, offset, dy, y) in enumerate(zip(ws, biases, dys, ys, strict=True)):
            launch_forward(u, taps, offset, input_bias, dy, y, s * outputs, activation)
    return ys


@operator("mad::short_conv")
def convolve(
    u: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, input_bias: torch.Tensor | None,
    activation: str, streams: int,
) -> list[torch.Tensor]:  # fmt: skip
    return streams_of(u, w, bias, input_bias, [None] * streams, activation)


@convolve.register_fake
def _(u, w, bias, input_bias, activation, streams):
    return [new_outputs(u, w.shape[0] // streams) for _ in range(streams)]


@operator("mad::short_conv_backward")
def gradients(
    u: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, input_bias: torch.Tensor | None,
    dys: list[torch.Tensor], activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """du, and in one row, fp32, dw (r H, K), dbias (r H,) and, where there is an input_bias, its gradient (H,)."""
    dz = dys if activation == "none" else streams_of(u, w, bias, input_bias, dys, activation)
    if len({t.stride() for t in dz}) > 1:
        dz = [t.contiguous() for t in dz]
    by_words = words.backward(u, w, input_bias, dz)
    if by_words is not None:
        return by_words
    batch, channels, length = u.shape
    outputs, width = w.shape
    repeats = outputs // channels
    columns = bucket(repeats * (width + 1) + (input_bias is not None), 1, 1 << 30)
    rows, tokens = tile(u, 256 if columns > 16 else 512 if length > 256 else 1024)  # an H100's best; many sums spill
    shares = min(batch, SPLITS)
    partial = u.new_empty(shares, channels, columns, dtype=torch.float32)
    du = new_outputs(u, channels)
    backward_kernel[(triton.cdiv(channels, rows), shares)](
        u, w, input_bias, *words.padded(dz), du, partial, batch, channels, dz[0].shape[1], length,
        *u.stride(), *dz[0].stride(), *du.stride(),
        R=repeats, K=width, STREAMS=len(dz), SUMS=columns, ADD=input_bias is not None, FAR=far(u, dz[0], du),
        BC=rows, BT=tokens,
    )  # fmt: skip
    sums, of_input = sum_shares(partial).split([repeats * (width + 1), columns - repeats * (width + 1)], dim=1)
    of_taps = sums.view(channels, repeats, width + 1).transpose(0, 1).flatten(0, 1)  # (r H, K + 1)
    parts = [of_taps[:, :-1].flatten(), of_taps[:, -1]]
    return du, torch.cat(parts if input_bias is None else [*parts, of_input[:, 0]])


@gradients.register_fake
def _(u, w, bias, input_bias, dys, activation):
    return torch.empty_like(u), w.new_empty(words.sums_of(w, input_bias), dtype=torch.float32)


def keep(ctx, inputs, output):
    *tensors, ctx.activation, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # its zeros would be batch-first


def backward(ctx, dys):
    """Streams that nothing reads have no gradient."""
    u, w, bias, input_bias = ctx.saved_tensors
    dys = [new_outputs(u, len(w) // len(dys)).zero_() if dy is None else dy for dy in dys]
    du, sums = gradients(u, w, bias, input_bias, dys, ctx.activation)
    dw, *others = sums.tensor_split([w.numel(), w.numel() + len(w)])
    dbiases = [None if t is None else g.to(t.dtype) for t, g in zip((bias, input_bias), others, strict=True)]
    return du, dw.view_as(w).to(w.dtype), *dbiases, None, None


convolve.register_autograd(backward, setup_context=keep)


def short_conv(
    u: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, *,
    input_bias: torch.Tensor | None, activation: str | None, streams: int,
) -> list[torch.Tensor]:  # fmt: skip
    """See kernels.short_conv_streams."""
    bias, input_bias = (None if t is None else t.contiguous() for t in (bias, input_bias))
    return convolve(u, w.contiguous(), bias, input_bias, activation or "none", streams)
