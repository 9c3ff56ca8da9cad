"""The selective scan in Triton: a parallel scan over chunks of time in registers, one state of a channel after another.

A program is one warp, so that no scan and no sum waits for another warp. It owns a few channels of one sequence and
walks over its chunks; tokens are the fast axis, so loads and stores are whole lines. Within a chunk, for each of the N
states, the pairs (decay, input) are combined by an associative scan, which never divides: a decay of exp(-50) leaves 0
of what came before and no inf. Only states at chunk starts go to memory, for the next chunk and for the backward pass,
which recomputes those between.

Backward, with p[t] = exp(dt[t] a) h[t-1], w[t] = dt[t] u[t] b[t], h = p + w, and dh the gradient of h:

    p[t] = exp(dt[t] a) (p[t-1] + w[t-1])           scanned forward from the state at the chunk's start
    dh[t] = c[t] dy[t] + exp(dt[t+1] a) dh[t+1]     scanned backward from the chunk after
    da = sum dh dt p     ddt = sum_n dh (a p + u b)     du = dt sum_n dh b     db = sum_D dh dt u     dc = sum_D dy h

p is scanned itself rather than taken as h - w, which under a strong decay would be the rounding error of h. Both scans
need a term of the token beside; it travels as a third part of the scanned element, so each decay is computed once.

No atomics: da is written a chunk, dskip a sequence, and added afterwards; so are db and dc, of which a program adds up
those of several blocks of channels, one after the other, in the memory where they are written.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.tiles import LOG2E, aligned, bucket, grid, operator


@triton.jit
def after(a0, b0, a1, b1):
    """(a, b) stands for h -> a h + b; the first, then the second."""
    return a0 * a1, a1 * b0 + b1


@triton.jit
def after_and_add(a0, b0, w0, a1, b1, w1):
    """(a, b, w) stands for h -> p = a h + b, which hands on p + w."""
    return a0 * a1, a1 * (b0 + w0) + b1, w1


@triton.jit
def after_and_scale(a0, b0, w0, a1, b1, w1):
    """(a, b, w) stands for x -> g = a x + b, which hands on w g."""
    a1 *= w0
    return a1 * a0, a1 * b0 + b1, w1


@triton.jit
def tokens(x, d, t, D, L, stride):
    """Channels d (BD, 1) at tokens t (1, BT) of one sequence, fp32, zero outside."""
    return tl.load(x + d * stride + t, mask=(d < D) & (t < L), other=0.0).to(tl.float32)


@triton.jit
def shared(x, d, t, L):
    """A row of b or c, the same for every channel: loaded (BD, BT), as it is needed."""
    return tl.load(x + d * 0 + t, mask=(d >= 0) & (t < L), other=0.0).to(tl.float32)


@triton.jit
def add(row, x, before, inside):
    """Store x (BT,), added to what the program stored there, if it did `before`, and has met a barrier since."""
    tl.store(row, x + tl.load(row, mask=inside & (before > 0), other=0.0), mask=inside)


@triton.jit
def forward_kernel(
    u, dt, a, b, c, skip, gate, first, y, states,
    D, L, N, u_b, u_d, dt_b, dt_d, b_b, b_n, c_b, c_n, g_b, g_d, y_b, y_d,
    SKIP: tl.constexpr, GATE: tl.constexpr, FIRST: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """y, and states (B, chunks + 1, D, N): before each chunk, and the last."""
    batch = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0).to(tl.int64) * BD + tl.arange(0, BD)[:, None]
    i = tl.arange(0, BT)[None, :]
    live = d < D
    chunks = tl.cdiv(L, BT)
    states += batch * (chunks + 1) * D * N
    if FIRST:
        for n in range(0, N):
            h = tl.load(first + (batch * D + d) * N + n, mask=live, other=0.0).to(tl.float32)
            tl.store(states + d * N + n, h, mask=live)
    else:
        for n in range(0, N):
            tl.store(states + d * N + n, tl.zeros((BD, 1), tl.float32), mask=live)
    for chunk in range(0, chunks):
        tl.debug_barrier()  # the states of the chunk before were stored by other threads of this block
        t = chunk * BT + i
        x = tokens(u + batch * u_b, d, t, D, L, u_d)  # (BD, BT)
        step = tokens(dt + batch * dt_b, d, t, D, L, dt_d)
        dtu = step * x
        out = tl.zeros((BD, BT), tl.float32)
        if SKIP:
            out += tl.load(skip + d, mask=live, other=0.0).to(tl.float32) * x
        at = states + tl.cast(chunk, tl.int64) * D * N + d * N
        for n in range(0, N):
            rate = tl.load(a + d * N + n, mask=live, other=0.0).to(tl.float32) * LOG2E
            h = tl.load(at + n, mask=live, other=0.0)  # (BD, 1)
            decay = tl.exp2(step * rate)
            w = dtu * shared(b + batch * b_b + n * b_n, d, t, L)
            w += tl.where(i == 0, decay * h, 0.0)
            _, h = tl.associative_scan((decay, w), 1, after)
            out += h * shared(c + batch * c_b + n * c_n, d, t, L)
            tl.store(at + D * N + n, tl.sum(tl.where(i == BT - 1, h, 0.0), 1)[:, None], mask=live)
        if GATE:
            z = tokens(gate + batch * g_b, d, t, D, L, g_d)
            out *= z / (1 + tl.exp(-z))
        tl.store(y + batch * y_b + d * y_d + t, out.to(y.dtype.element_ty), mask=live & (t < L))


@triton.jit
def backward_kernel(
    u, dt, a, b, c, skip, gate, states, dy, du, ddt, dgate, carried, da, dbc, dskip,
    D, L, N, blocks_each, u_b, u_d, dt_b, dt_d, b_b, b_n, c_b, c_n, g_b, g_d, dy_b, dy_d,
    du_b, du_d, ddt_b, ddt_d, dg_b, dg_d,
    SKIP: tl.constexpr, GATE: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """du, ddt, dgate; carried (B, chunks + 1, D, N), the gradient of `states`, of which the last is given; and sums:
    da (B, chunks, D, N), db and dc together (B, programs, 2, N, L), dskip (B, D)."""
    batch = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, BT)[None, :]
    chunks = tl.cdiv(L, BT)
    states += batch * (chunks + 1) * D * N
    carried += batch * (chunks + 1) * D * N
    da += batch * chunks * D * N
    dbc += (batch * tl.num_programs(0) + tl.program_id(0)) * 2 * N * L
    for block in range(0, blocks_each):
        d = (tl.program_id(0).to(tl.int64) * blocks_each + block) * BD + tl.arange(0, BD)[:, None]
        live = d < D
        sums = tl.zeros((BD, 1), tl.float32)
        for k in range(0, chunks):
            # other threads of this warp stored gradients at the start of the chunk after, and sums of the blocks before
            tl.debug_barrier()
            chunk = tl.cast(chunks - 1 - k, tl.int64)
            at = chunk * D * N + d * N
            start = (chunks - 1 - k) * BT
            t = start + i
            inside = live & (t < L)
            x = tokens(u + batch * u_b, d, t, D, L, u_d)  # (BD, BT)
            step = tokens(dt + batch * dt_b, d, t, D, L, dt_d)
            dtu = step * x
            g = tokens(dy + batch * dy_b, d, t, D, L, dy_d)
            y = tl.zeros((BD, BT), tl.float32)
            if GATE:
                z = tokens(gate + batch * g_b, d, t, D, L, g_d)
                g *= z / (1 + tl.exp(-z))
            dx = tl.zeros((BD, BT), tl.float32)  # sum over n of dh b
            dstep = tl.zeros((BD, BT), tl.float32)  # sum over n of dh a p
            for n in range(0, N):
                rate = tl.load(a + d * N + n, mask=live, other=0.0).to(tl.float32)  # (BD, 1)
                h = tl.load(states + at + n, mask=live, other=0.0)
                later = tl.load(carried + at + D * N + n, mask=live, other=0.0)
                bn = shared(b + batch * b_b + n * b_n, d, t, L)
                cn = shared(c + batch * c_b + n * c_n, d, t, L)
                decay = tl.exp2(step * (rate * LOG2E))
                _, p, _ = tl.associative_scan((decay, tl.where(i == 0, decay * h, 0.0), dtu * bn), 1, after_and_add)
                dh = g * cn + tl.where(i == BT - 1, later, 0.0)
                one = tl.full((BD, BT), 1.0, tl.float32)
                _, dh, _ = tl.associative_scan((one, dh, decay), 1, after_and_scale, reverse=True)
                tl.store(carried + at + n, tl.sum(tl.where(i == 0, decay * dh, 0.0), 1)[:, None], mask=live)
                hn = p + dtu * bn
                if GATE:
                    y += cn * hn
                dx += dh * bn
                p *= dh
                dstep += p * rate
                tl.store(da + at + n, tl.sum(p * step, 1)[:, None], mask=live)
                row = dbc + n * L + start + tl.arange(0, BT)
                add(row, tl.sum(dh * dtu, 0), block, start + tl.arange(0, BT) < L)
                add(row + N * L, tl.sum(g * hn, 0), block, start + tl.arange(0, BT) < L)
            # read once more rather than held in registers over all states
            x = tokens(u + batch * u_b, d, t, D, L, u_d)
            dstep += x * dx
            dx *= step
            if SKIP:
                scale = tl.load(skip + d, mask=live, other=0.0).to(tl.float32)
                dx += scale * g
                y += scale * x
                sums += tl.sum(g * x, 1)[:, None]
            tl.store(du + batch * du_b + d * du_d + t, dx.to(du.dtype.element_ty), mask=inside)
            tl.store(ddt + batch * ddt_b + d * ddt_d + t, dstep.to(ddt.dtype.element_ty), mask=inside)
            if GATE:
                z = tokens(gate + batch * g_b, d, t, D, L, g_d)
                s = 1 / (1 + tl.exp(-z))
                dz = y * tokens(dy + batch * dy_b, d, t, D, L, dy_d) * s * (1 + z * (1 - s))
                tl.store(dgate + batch * dg_b + d * dg_d + t, dz.to(dgate.dtype.element_ty), mask=inside)
        if SKIP:
            tl.store(dskip + batch * D + d, sums, mask=live)


def blocks(channels: int, length: int) -> dict[str, int]:
    """Sizes of a block of channels and of a chunk, eight elements a thread: with twice as many the backward spills."""
    chunk = bucket(length, 16, 128)
    return {"BD": bucket(channels, 1, 256 // chunk), "BT": chunk, "num_warps": 1, "num_stages": 1}


def blocks_each(batch: int, blocks: int, length: int, states: int) -> int:
    """How many blocks of channels a program of the backward pass takes: as many as leave the card enough programs, and
    so many that db and dc, which each program has of its own, stay within 2^28 elements."""
    most = min(-(-4096 // batch), max(1, 2**28 // (batch * 2 * states * length)))  # programs a sequence
    return triton.cdiv(blocks, most)


def strides(*tensors: torch.Tensor) -> list[int]:
    return [s for t in tensors for s in t.stride()[:2]]


@operator("mad::selective_scan")
def forward(
    u: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    gate: torch.Tensor | None,
    first: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y like u, the last state, and for the backward pass the states (B, chunks + 1, D, N)."""
    batch, channels, length = u.shape
    sizes = blocks(channels, length)
    chunks = triton.cdiv(length, sizes["BT"])
    y = torch.empty_like(u)
    states = u.new_empty(batch, chunks + 1, *a.shape, dtype=torch.float32)
    forward_kernel[grid(triton.cdiv(channels, sizes["BD"]), batch)](
        u, dt, a, b, c, skip, gate, first, y, states, channels, length, a.shape[1],
        *strides(u, dt, b, c, u if gate is None else gate, y),
        SKIP=skip is not None, GATE=gate is not None, FIRST=first is not None, **sizes,
    )  # fmt: skip
    return y, states[:, -1].clone(), states


@forward.register_fake
def _(u, dt, a, b, c, skip, gate, first):
    chunks = (u.shape[2] + 127) // 128  # of blocks(): shorter sequences are one chunk
    last = u.new_empty(u.shape[0], *a.shape, dtype=torch.float32)
    return torch.empty_like(u), last, u.new_empty(u.shape[0], chunks + 1, *a.shape, dtype=torch.float32)


@operator("mad::selective_scan_backward")
def gradients(
    u: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    gate: torch.Tensor | None,
    states: torch.Tensor,
    dy: torch.Tensor,
    dlast: torch.Tensor,
) -> list[torch.Tensor]:
    """du, ddt, da, db and dc (B, 2, N, L), dskip, dgate, dfirst: du, ddt, dgate like u, dt, gate, others fp32; empty
    for a skip and a gate that are not given."""
    batch, channels, length = u.shape
    sizes = blocks(channels, length)
    each = blocks_each(batch, triton.cdiv(channels, sizes["BD"]), length, a.shape[1])
    programs = grid(triton.cdiv(channels, sizes["BD"] * each), batch)
    du, ddt = torch.empty_like(u), torch.empty_like(dt)
    dgate = u.new_empty(0) if gate is None else torch.empty_like(gate)
    registers = 224 if u.dtype == torch.float32 else 200  # for 9 or 10 warps an SM; ptxas alone wants 12, and spills
    carried = torch.empty_like(states)
    carried[:, -1] = dlast
    da = torch.empty_like(states[:, 1:])
    dbc = u.new_empty(batch, programs[0], 2, *b.shape[1:], dtype=torch.float32)
    dskip = u.new_empty(batch, 0 if skip is None else channels, dtype=torch.float32)
    backward_kernel[programs](
        u, dt, a, b, c, skip, gate, states, dy, du, ddt, dgate, carried, da, dbc, dskip,
        channels, length, a.shape[1], each,
        *strides(u, dt, b, c, u if gate is None else gate, dy, du, ddt, u if gate is None else dgate),
        SKIP=skip is not None, GATE=gate is not None, maxnreg=registers, **sizes,
    )  # fmt: skip
    return [du, ddt, da.sum((0, 1)), dbc.sum(1), dskip.sum(0), dgate, carried[:, 0].clone()]


@gradients.register_fake
def _(u, dt, a, b, c, skip, gate, states, dy, dlast):
    def total(x):
        return u.new_empty(x.shape, dtype=torch.float32)

    dskip = u.new_empty(0, dtype=torch.float32) if skip is None else total(skip)
    dgate = u.new_empty(0) if gate is None else torch.empty_like(gate)
    dbc = u.new_empty(b.shape[0], 2, *b.shape[1:], dtype=torch.float32)
    return [torch.empty_like(u), torch.empty_like(dt), total(a), dbc, dskip, dgate, total(dlast)]


def keep(ctx, inputs, output):
    *given, first = inputs
    ctx.save_for_backward(*given, output[2])
    ctx.first = None if first is None else first.dtype
    ctx.mark_non_differentiable(output[2])


def backward(ctx, dy, dlast, _):
    u, dt, a, b, c, skip, gate, states = ctx.saved_tensors
    dlast = torch.zeros_like(states[:, 0]) if dlast is None else dlast
    dy = torch.zeros_like(u) if dy is None else aligned(dy)
    du, ddt, da, dbc, dskip, dgate, dfirst = gradients(u, dt, a, b, c, skip, gate, states, dy, dlast)
    dskip = None if skip is None else dskip.to(skip.dtype)
    dfirst = None if ctx.first is None else dfirst.to(ctx.first)
    grads = (da.to(a.dtype), dbc[:, 0].to(b.dtype), dbc[:, 1].to(c.dtype))
    return du, ddt, *grads, dskip, None if gate is None else dgate, dfirst


forward.register_autograd(backward, setup_context=keep)


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """See kernels.selective_scan."""
    length = u.shape[2]
    a, skip, first = (None if x is None else x.contiguous() for x in (a, skip, initial_state))
    # padding has dt = 0: it keeps the state
    u, dt, b, c, gate = (None if x is None else aligned(x) for x in (u, dt, b, c, gate))
    y, state, _ = forward(u, dt, a, b, c, skip, gate, first)
    y = y[..., :length] if length % 16 else y
    return (y, state) if return_state else y
