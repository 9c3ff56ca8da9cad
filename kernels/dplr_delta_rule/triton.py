"""The delta rule with a diagonal-plus-low-rank transition in Triton: one walk over the tokens, and three back.

With w = exp(decay), u what a token reads, G the gradient of S after a token, and du that of u,

    u[t] = S[t-1]^T a[t]      S[t] = w[t] S[t-1] + b[t] u[t]^T + k[t] v[t]^T      y[t] = S[t]^T q[t]
    G += q[t] dy[t]^T         dv[t] = G^T k[t]       du[t] = G^T b[t]             G <- w[t] G + a[t] du[t]^T
    dq[t] = S[t] dy[t]        da[t] = S[t-1] du[t]   dk[t] = G v[t]               db[t] = G u[t]

The first line and the second need whole columns of S and G, and nothing of other columns; the third, once u and du are
known for all tokens, whole rows and nothing of other rows. So no walk passes anything between programs, each sums along
one axis only, and no state is kept for the backward pass, but u, as large as v in fp32:

    walks.py   forward_kernel  S by columns, onwards     u, y, the last state     a program a head and block of values
               reverse_kernel  G by columns, backwards   du, dv, dfirst
               query_kernel    S by rows, onwards        dq, da                   a program a head and block of keys
               key_kernel      G by rows, backwards      dk, db, ddecay

The gradient of a decay, ddecay[t] = w[t] (sum over values of G * S[t-1]), has both S and G. It follows from those of
vectors, as each token changes G * S by its own part only: with h the sum over values of G * S, row by row,

    ddecay[t] = h + q[t] dq[t] - k[t] dk[t] - b[t] db[t]        h <- ddecay[t] + a[t] da[t]

from the last state's h on. Nothing is divided. Its rounding is that of h: where a decay as good as forgets a state that
matters, its gradient, which then is about 0, is so to about 1e-7 of the others.

All products and sums are fp32, on a CUDA core's multiply-adds: the walks are as long as the sequence, so time goes by
the latency of a token, not by arithmetic, unless there are many heads.
"""
# pyright: reportArgumentType=false

from typing import Any

import torch
import torch.nn.functional as F
import triton

from kernels.dplr_delta_rule.walks import forward_kernel, key_kernel, query_kernel, reverse_kernel
from kernels.tiles import bucket, grid, operator


def blocks(rows: int, columns: int) -> dict[str, int]:
    """Sizes of a tile: all rows, and as many columns as leave a thread 32 elements of it."""
    length = bucket(rows, 16, 256)
    return {"R": length, "L": bucket(columns, 4, min(32, 1024 // length)), "num_warps": 1, "num_stages": 1}


def programs(width: int, sizes: dict[str, int], batch: int, heads: int) -> tuple[int, ...]:
    return grid(triton.cdiv(width, sizes["L"]), heads, batch)


def strides(q: torch.Tensor, v: torch.Tensor) -> list[int]:
    """Of everything as wide as the keys, and of everything as wide as the values: see `laid`."""
    return [*q.stride()[:3], *v.stride()[:3]]


@operator("mad::dplr_delta_rule")
def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    first: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y like v, the last state, and u like v in fp32. All are `laid` alike; first is contiguous."""
    batch, heads, length, width = q.shape
    sizes = blocks(width, v.shape[3])
    y, u = torch.empty_like(v), torch.empty_like(v, dtype=torch.float32)
    last = q.new_empty(batch, heads, width, v.shape[3], dtype=torch.float32)
    forward_kernel[programs(v.shape[3], sizes, batch, heads)](
        q, k, v, a, b, decay, last if first is None else first, y, u, last, length, width, v.shape[3], *strides(q, v),
        FIRST=first is not None, **sizes,
    )  # fmt: skip
    return y, last, u


@forward.register_fake
def _(q, k, v, a, b, decay, first):
    last = q.new_empty(*q.shape[:2], q.shape[3], v.shape[3], dtype=torch.float32)
    return torch.empty_like(v), last, torch.empty_like(v, dtype=torch.float32)


@operator("mad::dplr_delta_rule_backward")
def gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    first: torch.Tensor | None,
    u: torch.Tensor,
    last: torch.Tensor,
    dy: torch.Tensor,
    dlast: torch.Tensor,
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:  # fmt: skip
    """dq, dk, dv, da, db like q, k, v, a, b; ddecay and dfirst, fp32."""
    batch, heads, length, width = q.shape
    values = v.shape[3]
    sizes = (length, width, values, *strides(q, v))
    dq, dk, dv, da, db = (torch.empty_like(x) for x in (q, k, v, a, b))
    ddecay, from_reads = (torch.empty_like(decay, dtype=torch.float32) for _ in range(2))
    du, dfirst = torch.empty_like(u), torch.empty_like(last)
    columns, rows = blocks(width, values), blocks(values, width)
    reverse_kernel[programs(values, columns, batch, heads)](
        q, k, a, b, decay, dy, dlast, dv, du, dfirst, *sizes, **columns
    )
    turned = None if first is None else first.mT.contiguous()  # loaded by rows, lanes lie along the keys
    query_kernel[programs(width, rows, batch, heads)](
        q, k, v, a, b, decay, last if turned is None else turned, u, dy, du, dq, da, from_reads, *sizes,
        FIRST=first is not None, **rows,
    )  # fmt: skip
    held = (last * dlast).sum(3)
    key_kernel[programs(width, rows, batch, heads)](
        q, k, v, a, b, decay, u, dy, du, dlast.mT.contiguous(), held, from_reads, dk, db, ddecay, *sizes, **rows
    )
    return dq, dk, dv, da, db, ddecay, dfirst


@gradients.register_fake
def _(q, k, v, a, b, decay, first, u, last, dy, dlast):
    like = [torch.empty_like(x) for x in (q, k, v, a, b)]
    return *like, torch.empty_like(decay, dtype=torch.float32), torch.empty_like(last)


def keep(ctx, inputs, output):
    _, last, u = output
    ctx.save_for_backward(*inputs, u, last)
    ctx.mark_non_differentiable(u)


def backward(ctx, dy, dlast, _):
    *given, u, last = ctx.saved_tensors
    q, v, decay, first = given[0], given[2], given[5], given[6]
    dlast = torch.zeros_like(last) if dlast is None else dlast.contiguous()
    dy = torch.zeros_like(v) if dy is None else laid(dy, by_token(q))
    *grads, ddecay, dfirst = gradients(*given, u, last, dy, dlast)
    return *grads, ddecay.to(decay.dtype), None if first is None else dfirst.to(first.dtype)


forward.register_autograd(backward, setup_context=keep)


def by_token(x: torch.Tensor) -> bool:
    """Whether x (B, H, T, d) lies in memory as (B, T, H, d), as a layer that splits heads has it."""
    return x.transpose(1, 2).is_contiguous()


def laid(x: torch.Tensor, tokens_first: bool) -> torch.Tensor:
    """x (B, H, T, d) laid out in memory as (B, T, H, d), or as it is written; padded to a multiple of 16, so that a
    token is loaded in whole words."""
    if x.shape[-1] % 16:
        x = F.pad(x, (0, -x.shape[-1] % 16))
    return x.transpose(1, 2).contiguous().transpose(1, 2) if tokens_first else x.contiguous()


def dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """See kernels.dplr_delta_rule."""
    width, values = q.shape[3], v.shape[3]
    dtype, tokens_first = v.dtype, by_token(q)
    for x in (q, k, a, b):
        dtype = torch.promote_types(dtype, x.dtype)
    first = initial_state
    if first is not None and (width % 16 or values % 16):
        first = F.pad(first, (0, -values % 16, 0, -width % 16))
    first = None if first is None else first.contiguous()
    given = [laid(x.to(dtype), tokens_first) for x in (q, k, v, a, b)]
    y, state, _ = forward(*given, laid(decay, tokens_first), first)
    y = y[..., :values].to(v.dtype)
    return (y, state[:, :, :width, :values]) if return_state else y
