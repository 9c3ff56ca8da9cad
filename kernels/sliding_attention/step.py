"""One token of sliding attention in Triton: the ring of keys and values streams through once."""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import LOG2E, bucket, operator


@triton.jit
def step_kernel(
    q, k, v, keys, values, position, y, new_keys, new_values, H, W, scale, d, dv,
    D: tl.constexpr, DV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One head of one sequence: streams the ring through, the newest key and value in their slot. scale: to base 2."""
    head = tl.program_id(0).to(tl.int64)
    seen = tl.load(position + head // H)
    newest = seen % W
    c = tl.arange(0, D)
    cv = tl.arange(0, DV)
    query = tl.load(q + head * d + c, mask=c < d, other=0.0).to(tl.float32) * scale
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


@operator("mad::sliding_step")
def step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, and the next keys and values."""
    q, k, v, keys, values, position = (t.contiguous() for t in (q, k, v, keys, values, position))
    batch, heads, window, d = keys.shape
    y, new_keys, new_values = torch.empty_like(v), torch.empty_like(keys), torch.empty_like(values)
    widths = {"D": bucket(d, 16, 256), "DV": bucket(v.shape[-1], 16, 256)}
    step_kernel[(batch * heads,)](
        q, k, v, keys, values, position, y, new_keys, new_values, heads, window, d**-0.5 * LOG2E.value, d, v.shape[-1],
        **widths, BN=bucket(window, 16, 4096 // max(widths.values())),
    )  # fmt: skip
    return y, new_keys, new_values


@step.register_fake
def _(q, k, v, keys, values, position):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (v, keys, values))
