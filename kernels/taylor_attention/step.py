"""One decode token of Taylor attention in Triton: the state is read once and written once, which is all its cost.

Features are made from the token's d numbers as they are needed, by the pair of columns that each multiplies.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.taylor_attention.reference import packed_size
from kernels.tiles import bucket, operator


@triton.jit
def _packed(x, f, row, column, scale, D: tl.constexpr, F: tl.constexpr):
    """Features f of the vector at x: 1, then x, then products of two, in the order of `reference.packed_features`."""
    first = tl.load(x + row, mask=(f > 0) & (f < F), other=1.0).to(tl.float32)
    second = tl.load(x + column, mask=(f > D) & (f < F), other=1.0).to(tl.float32)
    return first * second * scale


@triton.jit
def step_kernel(
    q, k, v, state, y, new, eps,
    H, N, W, q_b, q_h, k_b, k_h, v_b, v_h,
    D: tl.constexpr, F: tl.constexpr, NORMALIZE: tl.constexpr, BF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A head, a block of columns: new = state + phi(k)^T v, y = phi(q) new. Each block sums the normaliser itself."""
    head = tl.program_id(0).to(tl.int64)
    batch, place = head // H, head % H
    q += batch * q_b + place * q_h
    k += batch * k_b + place * k_h
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    value = tl.load(v + batch * v_b + place * v_h + n, mask=n < N, other=0.0).to(tl.float32)
    acc = tl.zeros((BN,), tl.float32)
    total = tl.zeros((BF,), tl.float32)
    for start in range(0, F, BF):
        f = start + tl.arange(0, BF)
        pair = f - (D + 1)  # in the upper triangle, row after row: row i starts at i D - i (i - 1) / 2
        i = tl.zeros((BF,), tl.int32)
        for j in range(1, D):
            i += (pair >= j * D - j * (j - 1) // 2).to(tl.int32)
        row = tl.where(pair < 0, f - 1, i)
        column = pair - (i * D - i * (i - 1) // 2) + i
        scale = tl.where(row == column, 0.7071067811865476 * D**-0.5, D**-0.5)
        scale = tl.where(pair < 0, D**-0.25, scale)
        scale = tl.where(f == 0, 1.0, scale)
        scale = tl.where(f < F, scale, 0.0)
        reads = _packed(q, f, row, column, scale, D, F)
        writes = _packed(k, f, row, column, scale, D, F)
        where = (head * F + f) * W
        mask = (f < F)[:, None] & (n < N)[None, :]
        s = tl.load(state + where[:, None] + n[None, :], mask=mask, other=0.0)  # (BF, BN)
        s += writes[:, None] * value[None, :]
        tl.store(new + where[:, None] + n[None, :], s, mask=mask)
        acc += tl.sum(reads[:, None] * s, 0)
        if NORMALIZE:
            z = tl.load(state + where + N, mask=f < F, other=0.0) + writes
            if tl.program_id(1) == 0:
                tl.store(new + where + N, z, mask=f < F)
            total += reads * z
    if NORMALIZE:
        acc /= tl.sum(total, 0) + eps
    tl.store(y + head * N + n, acc.to(y.dtype.element_ty), mask=n < N)


@operator("mad::taylor_step")
def one_token(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor, normalize: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    y, new = outputs(q, k, v, state, normalize, eps)
    batch, heads, d = q.shape
    width = v.shape[2]
    columns = bucket(width, 16, 64)
    step_kernel[(batch * heads, triton.cdiv(width, columns))](
        q, k, v, state, y, new, eps, heads, width, width + normalize,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        D=d, F=packed_size(d), NORMALIZE=normalize, BF=32, BN=columns,
    )  # fmt: skip
    return y, new


@one_token.register_fake
def outputs(q, k, v, state, normalize, eps):
    return v.new_empty(v.shape), state.new_empty(state.shape)


def taylor_step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor, *, normalize: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels.taylor_step."""
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    return one_token(q, k, v, state.float().contiguous(), bool(normalize), eps)
