"""Sliding attention in Triton: flash attention whose loops run over the blocks in sight and no others.

Scores never reach memory. Forward keeps the logarithm of each softmax's denominator; backward recomputes the weights
from it, in one kernel a block of queries (dq) and one a block of keys (dk, dv), so nothing is added up atomically.
Softmax statistics and sums are fp32; weights are rounded to the data's type where they enter a product.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import bucket, precision

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(x, head, t, T, width, D: tl.constexpr):
    """Rows t of one head of x (B H, T, width), as (rows, D), zeros outside."""
    c = tl.arange(0, D)[None, :]
    place = x + head * T * width + t[:, None] * width + c
    return tl.load(place, mask=(t[:, None] < T) & (c < width), other=0.0)


@triton.jit
def _store(x, head, t, T, width, tile, D: tl.constexpr):
    c = tl.arange(0, D)[None, :]
    place = x + head * T * width + t[:, None] * width + c
    tl.store(place, tile.to(x.dtype.element_ty), mask=(t[:, None] < T) & (c < width))


@triton.jit
def forward_kernel(
    q, k, v, y, lse, T, window, scale, d, dv,
    D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    query = _rows(q, head, m, T, d, D)
    highest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, DV), tl.float32)
    first = tl.maximum(start - window + 1, 0) // BN * BN
    for block in range(first, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        key = _rows(k, head, n, T, d, D)
        value = _rows(v, head, n, T, dv, DV)
        s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2E)
        seen = (n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window)
        s = tl.where(seen, s, float("-inf"))
        now = tl.maximum(highest, tl.max(s, 1))
        anchor = tl.where(now == float("-inf"), 0.0, now)  # a row that has seen nothing yet
        weight = tl.exp2(s - anchor[:, None])
        fade = tl.exp2(highest - anchor)
        total = total * fade + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * fade[:, None], input_precision=PRECISION)
        highest = now
    _store(y, head, m, T, dv, acc / tl.where(total > 0, total, 1.0)[:, None], DV)  # rows past the end see nothing
    tl.store(lse + head * T + m, highest + tl.log2(tl.where(total > 0, total, 1.0)), mask=m < T)


@triton.jit
def queries_kernel(
    q, k, v, dy, lse, delta, dq, T, window, scale, d, dv,
    D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries."""
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    query = _rows(q, head, m, T, d, D)
    gradient = _rows(dy, head, m, T, dv, DV)
    norm = tl.load(lse + head * T + m, mask=m < T, other=0.0)
    mean = tl.load(delta + head * T + m, mask=m < T, other=0.0)
    acc = tl.zeros((BM, D), tl.float32)
    first = tl.maximum(start - window + 1, 0) // BN * BN
    for block in range(first, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        key = _rows(k, head, n, T, d, D)
        value = _rows(v, head, n, T, dv, DV)
        s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2E)
        seen = (n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window) & (m[:, None] < T)
        weight = tl.exp2(tl.where(seen, s - norm[:, None], float("-inf")))
        slope = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
        ds = weight * (slope - mean[:, None]) * scale
        acc = tl.dot(ds.to(key.dtype), key, acc, input_precision=PRECISION)
    _store(dq, head, m, T, d, acc, D)


@triton.jit
def keys_kernel(
    q, k, v, dy, lse, delta, dk, dvalue, T, window, scale, d, dv,
    D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys: scores are formed transposed, (BN, BM)."""
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BN
    n = start + tl.arange(0, BN)
    key = _rows(k, head, n, T, d, D)
    value = _rows(v, head, n, T, dv, DV)
    acc_k = tl.zeros((BN, D), tl.float32)
    acc_v = tl.zeros((BN, DV), tl.float32)
    for block in range(start // BM * BM, tl.minimum(start + BN - 1 + window, T), BM):
        m = block + tl.arange(0, BM)
        query = _rows(q, head, m, T, d, D)
        gradient = _rows(dy, head, m, T, dv, DV)
        norm = tl.load(lse + head * T + m, mask=m < T, other=0.0)
        mean = tl.load(delta + head * T + m, mask=m < T, other=0.0)
        s = tl.dot(key, tl.trans(query), input_precision=PRECISION) * (scale * LOG2E)
        seen = (n[:, None] <= m[None, :]) & (n[:, None] > m[None, :] - window) & (m[None, :] < T)
        weight = tl.exp2(tl.where(seen, s - norm[None, :], float("-inf")))
        acc_v = tl.dot(weight.to(gradient.dtype), gradient, acc_v, input_precision=PRECISION)
        slope = tl.dot(value, tl.trans(gradient), input_precision=PRECISION)
        ds = weight * (slope - mean[None, :]) * scale
        acc_k = tl.dot(ds.to(query.dtype), query, acc_k, input_precision=PRECISION)
    _store(dk, head, n, T, d, acc_k, D)
    _store(dvalue, head, n, T, dv, acc_v, DV)


@triton.jit
def step_kernel(
    q, k, v, keys, values, position, y, new_keys, new_values, H, W, scale, d, dv,
    D: tl.constexpr, DV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One head of one sequence: streams the ring through, with the newest key and value in their slot."""
    head = tl.program_id(0).to(tl.int64)
    seen = tl.load(position + head // H)
    newest = seen % W
    c = tl.arange(0, D)
    cv = tl.arange(0, DV)
    query = tl.load(q + head * d + c, mask=c < d, other=0.0).to(tl.float32) * (scale * LOG2E)
    key = tl.load(k + head * d + c, mask=c < d, other=0.0)
    value = tl.load(v + head * dv + cv, mask=cv < dv, other=0.0)
    highest = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((DV,), tl.float32)
    for block in range(0, W, BN):
        n = block + tl.arange(0, BN)
        here = (n == newest)[:, None]
        place = head * W * d + n[:, None] * d + c[None, :]
        inside = (n[:, None] < W) & (c[None, :] < d)
        tile = tl.where(here, key[None, :], tl.load(keys + place, mask=inside, other=0.0))
        tl.store(new_keys + place, tile, mask=inside)
        reached = (n <= seen) & (n < W)
        s = tl.sum(tl.where(reached[:, None], tile.to(tl.float32), 0.0) * query[None, :], 1)
        s = tl.where(reached, s, float("-inf"))
        place = head * W * dv + n[:, None] * dv + cv[None, :]
        inside = (n[:, None] < W) & (cv[None, :] < dv)
        tile = tl.where(here, value[None, :], tl.load(values + place, mask=inside, other=0.0))
        tl.store(new_values + place, tile, mask=inside)
        now = tl.maximum(highest, tl.max(s, 0))
        weight = tl.exp2(s - now)
        weight = tl.where(reached, weight, 0.0)
        fade = tl.exp2(highest - now)
        total = total * fade + tl.sum(weight, 0)
        acc = acc * fade + tl.sum(tl.where(reached[:, None], tile.to(tl.float32), 0.0) * weight[:, None], 0)
        highest = now
    tl.store(y + head * dv + cv, (acc / total).to(y.dtype.element_ty), mask=cv < dv)


def tiling(q: torch.Tensor, v: torch.Tensor) -> dict:
    """Block sizes by head width: what three products of a tile leave of the registers."""
    widths = {"D": bucket(q.shape[-1], 16, 256), "DV": bucket(v.shape[-1], 16, 256)}
    widest = max(widths.values())
    single = q.dtype == torch.float32  # three TF32 products a product
    block = 16 if single else 64 if widest <= 128 else 32
    schedule = {"num_warps": 4 if widest <= 64 else 8, "num_stages": 1 if single else 2}
    return widths | schedule | {"BM": block, "BN": block, "PRECISION": precision(q.dtype)}


@torch.library.custom_op("mad::sliding_attention", mutates_args=())
def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v contiguous -> y, and lse (B, H, T) in base 2, fp32."""
    batch, heads, length, d = q.shape
    y, lse = torch.empty_like(v), q.new_empty(batch, heads, length, dtype=torch.float32)
    options = tiling(q, v)
    forward_kernel[(triton.cdiv(length, options["BM"]), batch * heads)](
        q, k, v, y, lse, length, window, d**-0.5, d, v.shape[-1], **options
    )
    return y, lse


@forward.register_fake
def _(q, k, v, window):
    return torch.empty_like(v), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("mad::sliding_attention_backward", mutates_args=())
def backward(
    dy: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, y: torch.Tensor, lse: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, length, d = q.shape
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    delta = (dy.float() * y.float()).sum(-1)
    options = tiling(q, v)
    sizes = (length, window, d**-0.5, d, v.shape[-1])
    grid = (triton.cdiv(length, options["BM"]), batch * heads)
    queries_kernel[grid](q, k, v, dy, lse, delta, dq, *sizes, **options)
    keys_kernel[grid](q, k, v, dy, lse, delta, dk, dv, *sizes, **options)
    return dq, dk, dv


@backward.register_fake
def _(dy, q, k, v, y, lse, window):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def save(ctx, inputs, output):
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def differentiate(ctx, dy, _):
    q, k, v, y, lse = ctx.saved_tensors
    return *backward(dy.contiguous(), q, k, v, y, lse, ctx.window), None


forward.register_autograd(differentiate, setup_context=save)


@torch.library.custom_op("mad::sliding_step", mutates_args=())
def step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, and the next keys and values."""
    q, k, v, keys, values = (t.contiguous() for t in (q, k, v, keys, values))
    batch, heads, window, d = keys.shape
    y, new_keys, new_values = torch.empty_like(v), torch.empty_like(keys), torch.empty_like(values)
    widths = {"D": bucket(d, 16, 256), "DV": bucket(v.shape[-1], 16, 256)}
    step_kernel[(batch * heads,)](
        q, k, v, keys, values, position, y, new_keys, new_values, heads, window, d**-0.5, d, v.shape[-1],
        **widths, BN=bucket(window, 16, 4096 // max(widths.values())),
    )  # fmt: skip
    return y, new_keys, new_values


@step.register_fake
def _(q, k, v, keys, values, position):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (v, keys, values))


def sliding_attention(q, k, v, window: int) -> torch.Tensor:
    """See kernels.sliding_attention."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    return forward(q.contiguous(), k.contiguous(), v.contiguous(), min(window, q.shape[2]))[0]
