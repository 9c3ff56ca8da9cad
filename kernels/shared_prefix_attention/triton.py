"""Hydragen in Triton: one kernel a level over all queries that share a prefix, one for suffixes that joins the parts.

A level's rows are (sequence, query token, head of the group), so its products are wide however few tokens are decoded.
Where that is still too few programs for the GPU, the keys are cut into shares, each a part of its own. Parts are kept
in fp32 with their log-sum-exps (base 2); the suffix kernel adds them to its own running softmax before it writes.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import LOG2E, bucket, grid, operator, precision

PROGRAMS = 264  # two for each SM of an H100: fewer, and keys are cut into shares
SHARE = 512  # keys a share at least


@triton.jit
def _softmax_block(query, key, value, seen, highest, total, acc, scale, PRECISION: tl.constexpr):
    """One step of the running softmax over a block of keys (BN, D); seen (., BN) or (1, BN)."""
    s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2E)
    s = tl.where(seen, s, float("-inf"))
    now = tl.maximum(highest, tl.max(s, 1))
    anchor = tl.where(now == float("-inf"), 0.0, now)
    weight = tl.exp2(s - anchor[:, None])
    fade = tl.exp2(highest - anchor)
    total = total * fade + tl.sum(weight, 1)
    acc = tl.dot(weight.to(value.dtype), value, acc * fade[:, None], input_precision=PRECISION)
    return now, total, acc


@triton.jit
def prefix_kernel(
    q, k, v, lengths, part, lse, ROWS, P, SHARES, N, G, HK, scale, d,
    q_b, q_n, q_h, k_s, k_p, k_h, v_s, v_p, v_h,
    RAGGED: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of one prefix and one key head over a share of its keys; part (SHARES, B, N, Hq, d), lse without d.

    WHOLE: d = D, in half precision. Blocks of keys then need no mask but for the last, and a block's weights meet its
    values one block later: that product is under way while the exponentials of the next block are taken.
    """
    share = tl.program_id(1)
    prefix = (tl.program_id(2) // HK).to(tl.int64)
    head = tl.program_id(2) % HK
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, D)
    b = prefix * (ROWS // (N * G)) + row // (N * G)
    token = row // G % N
    query_head = head * G + row % G
    live = (row < ROWS)[:, None] & (c < d)[None, :]
    place = q + b * q_b + token * q_n + query_head * q_h
    query = tl.load(place[:, None] + c[None, :], mask=live, other=0.0)
    length = P
    if RAGGED:
        length = tl.minimum(tl.load(lengths + prefix).to(tl.int32), P)
    keys = tl.cdiv(tl.cdiv(P, SHARES), BN) * BN
    highest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    start, end = share * keys, tl.minimum((share + 1) * keys, length)
    if WHOLE:
        full = start + tl.maximum(end - start, 0) // BN * BN
        n = tl.arange(0, BN)
        weight = tl.zeros((BM, BN), tl.int16)  # bits, as a left operand carried as it is would pass through memory
        fade = tl.full((BM,), 1.0, tl.float32)
        for first in range(start, full, BN):
            key = tl.load(k + prefix * k_s + head * k_h + (first + n)[None, :] * k_p + c[:, None])
            before = tl.maximum(first - BN, start) + n
            value = tl.load(v + prefix * v_s + head * v_h + before[:, None] * v_p + c[None, :])
            s = tl.dot(query, key)
            acc = tl.dot(weight.to(value.dtype, bitcast=True), value, acc * fade[:, None])
            now = tl.maximum(highest, tl.max(s, 1) * (scale * LOG2E))
            e = tl.exp2(s * (scale * LOG2E) - now[:, None])
            fade = tl.exp2(highest - now)
            total = total * fade + tl.sum(e, 1)
            weight = e.to(value.dtype).to(tl.int16, bitcast=True)
            highest = now
        p = full - BN + n
        value = v + prefix * v_s + head * v_h + p[:, None] * v_p + c[None, :]
        value = tl.load(value, mask=(p >= start)[:, None], other=0.0)
        acc = tl.dot(weight.to(value.dtype, bitcast=True), value, acc * fade[:, None])
        start = full
    for first in tl.range(start, end, BN, num_stages=1 if WHOLE else None):  # WHOLE: one block at most
        p = first + tl.arange(0, BN)
        there = (p < length)[:, None] & (c < d)[None, :]
        key = tl.load(k + prefix * k_s + head * k_h + p[:, None] * k_p + c[None, :], mask=there, other=0.0)
        value = tl.load(v + prefix * v_s + head * v_h + p[:, None] * v_p + c[None, :], mask=there, other=0.0)
        highest, total, acc = _softmax_block(
            query, key, value, (p < length)[None, :], highest, total, acc, scale, PRECISION
        )
    some = tl.where(total > 0, total, 1.0)
    out = ((share * tl.num_programs(2) // HK * (ROWS // (N * G)) + b) * N + token) * (HK * G) + query_head
    tl.store(part + out[:, None] * d + c[None, :], acc / some[:, None], mask=live)
    tl.store(lse + out, highest + tl.log2(some), mask=row < ROWS)


@triton.jit
def suffix_kernel(
    q, k, v, lengths, part, lse, y, B, U, PARTS, N, G, HK, scale, d,
    q_b, q_n, q_h, k_b, k_u, k_h, v_b, v_u, v_h,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows (token, head of the group) of one sequence and one key head over its suffix, joined with the parts."""
    b = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.program_id(2) * BM + tl.arange(0, BM)
    c = tl.arange(0, D)
    token = row // G
    query_head = head * G + row % G
    live = (row < N * G)[:, None] & (c < d)[None, :]
    place = q + b * q_b + token * q_n + query_head * q_h
    query = tl.load(place[:, None] + c[None, :], mask=live, other=0.0)
    length = tl.minimum(tl.load(lengths + b).to(tl.int32), U)
    highest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for first in range(0, length, BN):
        u = first + tl.arange(0, BN)
        there = (u < length)[:, None] & (c < d)[None, :]
        key = tl.load(k + b * k_b + head * k_h + u[:, None] * k_u + c[None, :], mask=there, other=0.0)
        value = tl.load(v + b * v_b + head * v_h + u[:, None] * v_u + c[None, :], mask=there, other=0.0)
        highest, total, acc = _softmax_block(
            query, key, value, (u < length)[None, :], highest, total, acc, scale, PRECISION
        )
    out = (b * N + token) * (HK * G) + query_head
    for i in range(0, PARTS):
        other = tl.cast(i, tl.int64) * (B * N * HK * G) + out
        norm = tl.load(lse + other, mask=row < N * G, other=float("-inf"))
        now = tl.maximum(highest, norm)
        anchor = tl.where(now == float("-inf"), 0.0, now)
        fade, weight = tl.exp2(highest - anchor), tl.exp2(norm - anchor)
        total = total * fade + weight
        acc = acc * fade[:, None] + weight[:, None] * tl.load(
            part + other[:, None] * d + c[None, :], mask=live, other=0.0
        )
        highest = now
    acc /= tl.where(total > 0, total, 1.0)[:, None]
    tl.store(y + out[:, None] * d + c[None, :], acc.to(y.dtype.element_ty), mask=live)


def shares(rows: int, prefixes: int, keys: int, block: int) -> int:
    """Into how many parts a level's keys are cut."""
    programs = triton.cdiv(rows, block) * prefixes
    return max(1, min(triton.cdiv(keys, SHARE), PROGRAMS // programs))


@operator("mad::shared_prefix_attention")
def attend(
    q: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    lengths: list[torch.Tensor],
    suffix_k: torch.Tensor,
    suffix_v: torch.Tensor,
    suffix_lengths: torch.Tensor,
) -> torch.Tensor:
    """`lengths` of a level whose prefixes are all complete is empty."""
    batch, n, query_heads, d = q.shape
    heads = suffix_k.shape[2]
    group = query_heads // heads
    odd = d > 16 and d % 16 > 0  # columns that are masked, and loaded one by one: their addresses take registers
    small = odd or q.dtype == torch.float32 or d > 128  # what registers hold
    most = 64 if not small else 16 if odd and d > 64 else 32  # rows a block
    keys_block = 16 if small and d > 64 else 32 if small else 64
    common = {"D": bucket(d, 16, 256), "BN": keys_block, "PRECISION": precision(q.dtype)}
    plans = []
    for k in keys:
        rows = batch // k.shape[0] * n * group
        block = bucket(rows, 16, most)
        plans.append((rows, block, shares(rows, k.shape[0] * heads, k.shape[1], block)))
    parts = sum(count for _, _, count in plans)
    part = q.new_empty(parts, batch, n, query_heads, d, dtype=torch.float32)
    lse = q.new_empty(parts, batch, n, query_heads, dtype=torch.float32)
    first = 0
    for k, v, length, (rows, block, count) in zip(keys, values, lengths, plans, strict=True):
        prefix_kernel[grid(triton.cdiv(rows, block), count, k.shape[0] * heads)](
            q, k, v, length, part[first:], lse[first:], rows, k.shape[1], count, n, group, heads, d**-0.5, d,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            RAGGED=length.numel() > 0, WHOLE=d == common["D"] and block == 64, BM=block, num_warps=8 if small else 4,
            **common,
        )  # fmt: skip
        first += count
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    block = bucket(n * group, 16, most)
    suffix_kernel[(batch, heads, triton.cdiv(n * group, block))](
        q, suffix_k, suffix_v, suffix_lengths, part, lse, y, batch, suffix_k.shape[1], parts, n, group, heads,
        d**-0.5, d, *q.stride()[:3], *suffix_k.stride()[:3], *suffix_v.stride()[:3],
        BM=block, num_warps=8 if small else 4, **common,
    )  # fmt: skip
    return y


@attend.register_fake
def _(q, keys, values, lengths, suffix_k, suffix_v, suffix_lengths):
    return q.new_empty(q.shape)


def shared_prefix_attention(q, prefixes, suffix_k, suffix_v, suffix_lengths) -> torch.Tensor:
    """See kernels.shared_prefix_attention; every level is (k, v, lengths or None)."""
    q, suffix_k, suffix_v = (rows(t, q.dtype) for t in (q, suffix_k, suffix_v))
    keys, values = ([rows(level[i], q.dtype) for level in prefixes] for i in range(2))
    none = suffix_lengths.new_empty(0)
    lengths = [none if level[2] is None else level[2].contiguous() for level in prefixes]
    return attend(q, keys, values, lengths, suffix_k, suffix_v, suffix_lengths.contiguous())


def rows(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """With the features of a token side by side, as the kernels read them, and offsets of tokens of 32 bits."""
    t = t.to(dtype)
    return t if t.stride(-1) == 1 and (t.shape[1] - 1) * t.stride(1) < 2**31 else t.contiguous()
