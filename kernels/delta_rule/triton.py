"""The delta rule in Triton: what a chunk needs of itself in parallel, then a scan that carries the state on chip.

With u[t] what token t adds (see reference.py), a chunk that starts from state S is

    A[t, s] = beta[t] w[t, s] k[t].k[s]  for s < t        M = (I + A)^-1        P[t, s] = w[t, s] q[t].k[s]  for s <= t
    u = M (beta (v - w_start K S))          y = w_start Q S + P u          S <- w_end S + (w_to_end K)^T u

    scan.py    chunk_kernel    M and P                              a program a chunk
               scan_kernel     u, y, and the states in between      a program a head and block of values
    slopes.py  reverse_kernel  the same scan backwards: gradients of the state after each chunk (D) and of beta (v - ..)
               slope_kernel    all other gradients                  a program a chunk

The backward pass saves the inputs alone and runs the first two again.

bf16: M, P, u and dz are rounded to the type of the data as they enter a product, and so is the state as it is read;
what is carried, and every sum, stays fp32 (followed in float64 with these roundings alone: 4e-3 of y, of which its own
rounding is 2e-3, after 2048 tokens as after 256). fp16, whose range is too small for states and their gradients, is
computed in TF32, which has the same 10 bits.
"""
# pyright: reportArgumentType=false, reportAssignmentType=false

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels.delta_rule.scan import chunk_kernel, scan_kernel
from kernels.delta_rule.slopes import reverse_kernel, slope_kernel
from kernels.tiles import aligned, bucket, grid, operator


def blocks(q: torch.Tensor, v: torch.Tensor) -> dict:
    """Sizes of a chunk and of blocks of keys and values by shape, and the type that products are taken in.

    Products of three TF32 ones hold their operands in registers twice, so fp32 has smaller blocks.
    """
    width = bucket(q.shape[3])
    wide = q.dtype != torch.bfloat16
    return {
        "C": bucket(q.shape[2], 16, 16 if wide else 64),
        "BK": width,
        "BV": bucket(v.shape[3], 16, 32 if wide else 64),
        "PRECISION": {torch.float32: "tf32x3", torch.float16: "tf32"}.get(q.dtype, "ieee"),
        "TYPE": tl.float32 if wide else tl.bfloat16,
        "num_warps": 8 if width > 64 else 4,
        "num_stages": 2,
    }


def within_chunk(sizes: dict) -> dict:
    """The same for kernels that hold no state, but several squares of a chunk."""
    wide, whole = sizes["TYPE"] == tl.float32, sizes["C"] == 64
    return sizes | {
        "BK": min(sizes["C"], sizes["BK"]),
        "BV": min(64 if whole else 16, sizes["BV"]),
        "num_warps": 8 if whole else 2 if wide else 4,
        "num_stages": 1,
    }


def strides(*tensors: torch.Tensor) -> list[int]:
    return [s for t in tensors for s in t.stride()[:3]]


def chunk_terms(q, k, beta, decay, sizes: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """M and P, (B H, chunks, C, C), in the type that products are taken in."""
    batch, heads, length, width = q.shape
    sizes = {n: x for n, x in within_chunk(sizes).items() if n != "BV"}
    chunks, size = triton.cdiv(length, sizes["C"]), sizes["C"]
    kind = torch.float32 if sizes["TYPE"] == tl.float32 else torch.bfloat16
    solve, scores = (q.new_empty(batch * heads, chunks, size, size, dtype=kind) for _ in range(2))
    chunk_kernel[grid(chunks, heads, batch)](
        q, k, beta, beta if decay is None else decay, solve, scores, length, width, *strides(q, k),
        GATED=decay is not None, **sizes,
    )  # fmt: skip
    return solve, scores


@operator("mad::delta_rule")
def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor | None,
    first: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y like v, and the last state. The last axis of q, k, v is contiguous; beta, decay and first are."""
    batch, heads, length, width = q.shape
    sizes = blocks(q, v)
    solve, scores = chunk_terms(q, k, beta, decay, sizes)
    y = torch.empty_like(v)
    last = q.new_empty(batch, heads, width, v.shape[3], dtype=torch.float32)
    scan_kernel[grid(triton.cdiv(v.shape[3], sizes["BV"]), heads, batch)](
        q, k, v, beta, beta if decay is None else decay, solve, scores, last if first is None else first, y, last,
        last, last, first is not None, length, width, v.shape[3], *strides(q, k, v, y),
        GATED=decay is not None, KEEP=False, **sizes,
    )  # fmt: skip
    return y, last


@forward.register_fake
def _(q, k, v, beta, decay, first):
    return torch.empty_like(v), q.new_empty(*q.shape[:2], q.shape[3], v.shape[3], dtype=torch.float32)


@operator("mad::delta_rule_backward")
def gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor | None,
    first: torch.Tensor | None,
    dy: torch.Tensor,
    dlast: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv like q, k, v; dbeta, ddecay (empty without decay) and dfirst, fp32."""
    batch, heads, length, width = q.shape
    values = v.shape[3]
    sizes = blocks(q, v)
    chunks = triton.cdiv(length, sizes["C"])
    gates = beta if decay is None else decay
    solve, scores = chunk_terms(q, k, beta, decay, sizes)
    states, dstates = (q.new_empty(batch * heads, chunks, width, values, dtype=torch.float32) for _ in range(2))
    u, dz = (q.new_empty(batch * heads, length, values, dtype=solve.dtype) for _ in range(2))
    dfirst = q.new_empty(batch, heads, width, values, dtype=torch.float32)
    programs = grid(triton.cdiv(values, sizes["BV"]), heads, batch)
    scan_kernel[programs](
        q, k, v, beta, gates, solve, scores, dfirst if first is None else first, v, dfirst,
        states, u, first is not None, length, width, values, *strides(q, k, v, v),
        GATED=decay is not None, KEEP=True, **sizes,
    )  # fmt: skip
    reverse_kernel[programs](
        q, k, beta, gates, solve, scores, dy, dlast, dstates, dz, dfirst,
        length, width, values, *strides(q, k, dy),
        GATED=decay is not None, **sizes,
    )  # fmt: skip
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    dbeta = torch.empty_like(beta, dtype=torch.float32)
    ddecay = dbeta.new_empty(0) if decay is None else torch.empty_like(dbeta)
    slope_kernel[grid(chunks, heads, batch)](
        q, k, v, beta, gates, dy, states, dstates, u, dz, dq, dk, dv, dbeta, ddecay,
        length, width, values, *strides(q, k, v, dy, dq, dk, dv),
        GATED=decay is not None, **within_chunk(sizes),
    )  # fmt: skip
    return dq, dk, dv, dbeta, ddecay, dfirst


@gradients.register_fake
def _(q, k, v, beta, decay, first, dy, dlast):
    dbeta = torch.empty_like(beta, dtype=torch.float32)
    ddecay = dbeta.new_empty(0) if decay is None else torch.empty_like(dbeta)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dbeta, ddecay, torch.empty_like(dlast)


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def backward(ctx, dy, dlast):
    q, k, v, beta, decay, first = ctx.saved_tensors
    dlast = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=torch.float32) if dlast is None else dlast
    dy = torch.zeros_like(v) if dy is None else aligned(dy)
    dq, dk, dv, dbeta, ddecay, dfirst = gradients(q, k, v, beta, decay, first, dy, dlast.contiguous())
    ddecay = None if decay is None else ddecay.to(decay.dtype)
    return dq, dk, dv, dbeta.to(beta.dtype), ddecay, None if first is None else dfirst.to(first.dtype)


forward.register_autograd(backward, setup_context=keep)


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """See kernels.delta_rule."""
    width, values = q.shape[3], v.shape[3]
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    first = initial_state
    if first is not None and (width % 16 or values % 16):
        first = F.pad(first, (0, -values % 16, 0, -width % 16))
    beta, decay, first = (None if x is None else x.contiguous() for x in (beta, decay, first))
    y, state = forward(*(aligned(x.to(dtype)) for x in (q, k, v)), beta, decay, first)
    y = y[..., :values].to(v.dtype)
    return (y, state[:, :, :width, :values]) if return_state else y
