"""Sum and norm in Triton: a program has whole rows, so all that is summed over features is summed in registers.

Backward computes the norm again from the sum. The gradients of weight and bias are sums over all rows: a program walks
over its share of them and keeps a tile of partial sums, which is added up at its end; shares are added afterwards, in a
fixed order.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import bucket, operator, sum_shares

PROGRAMS = 132 * 4  # of the backward: what fills an H100
TILE = 1024  # numbers of a block of rows: eight a thread


@triton.jit
def _place(block, N, D, BN: tl.constexpr, BD: tl.constexpr):
    """Where the numbers of a block of rows are in contiguous (N, D), which of them are, and which rows."""
    n = tl.cast(block, tl.int64) * BN + tl.arange(0, BN)
    d = tl.arange(0, BD)[None, :]
    here = n < N
    return n[:, None] * D + d, here[:, None] & (d < D), here


@triton.jit
def _deviations(s, inside, here, eps, D, CENTER: tl.constexpr):
    """s, or with CENTER s less its mean, over its root mean square; and one over that, (BN,)."""
    if CENTER:
        s = tl.where(inside, s - (tl.sum(s, 1) / D)[:, None], 0.0)
    r = 1 / tl.sqrt(tl.where(here, tl.sum(s * s, 1) / D + eps, 1.0))  # beyond all is 0, and so may eps be
    return s * r[:, None], r


@triton.jit
def forward_kernel(
    x, y, weight, bias, total, normed, eps, N, D,
    ADD: tl.constexpr, BIAS: tl.constexpr, CENTER: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    place, inside, here = _place(tl.program_id(0), N, D, BN, BD)
    d = tl.arange(0, BD)
    s = tl.load(x + place, mask=inside, other=0.0)
    if ADD:
        s = (s.to(tl.float32) + tl.load(y + place, mask=inside, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, s, mask=inside)
    n, _ = _deviations(s.to(tl.float32), inside, here, eps, D, CENTER)
    n *= tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        n += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    tl.store(normed + place, n.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dn, ds, total, weight, dx, dy, partial, eps, N, D,
    SUM: tl.constexpr, ADDED: tl.constexpr, BIAS: tl.constexpr, CENTER: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dx, with ADDED dy, the same in y's type, and this share's sums for weight and, with BIAS, for bias, in partial
    (shares, 1 or 2, D)."""
    d = tl.arange(0, BD)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    sum_w, sum_b = tl.zeros((BN, BD), tl.float32), tl.zeros((BN, BD), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, BN), tl.num_programs(0)):
        place, inside, here = _place(block, N, D, BN, BD)
        s = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
        n, r = _deviations(s, inside, here, eps, D, CENTER)
        gradient = tl.load(dn + place, mask=inside, other=0.0).to(tl.float32)
        sum_w += gradient * n
        if BIAS:
            sum_b += gradient
        gradient *= w
        slope = gradient - n * (tl.sum(gradient * n, 1) / D)[:, None]
        if CENTER:
            slope -= (tl.sum(gradient, 1) / D)[:, None]
        slope *= r[:, None]
        if SUM:
            slope += tl.load(ds + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + place, slope.to(dx.dtype.element_ty), mask=inside)
        if ADDED:
            tl.store(dy + place, slope.to(dy.dtype.element_ty), mask=inside)
    partial += tl.program_id(0) * (2 if BIAS else 1) * D + d
    tl.store(partial, tl.sum(sum_w, 0), mask=d < D)
    if BIAS:
        tl.store(partial + D, tl.sum(sum_b, 0), mask=d < D)


def tiling(width: int) -> dict[str, int]:
    """Left to itself the assembler aims at fewer registers and spills a few."""
    columns = bucket(width, 16, 1 << 20)
    return {"BN": max(1, TILE // columns), "BD": columns, "num_warps": 4 if columns <= TILE else 8, "maxnreg": 160}


def tiling_backward(rows: int, width: int) -> dict[str, int]:
    """Blocks twice as large, of rows of 65 to 128 numbers, where programs have seven or more: as an H200 showed, of
    131,072 rows."""
    options = tiling(width)
    larger = 2 * options["BN"]
    return options | {"BN": larger} if options["BD"] == 128 and rows >= 7 * PROGRAMS * larger else options


@operator("mad::add_norm")
def forward(
    x: torch.Tensor, y: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None,
    center: bool, eps: float, dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """x, y (N, D), contiguous -> their sum, empty without y, and its norm."""
    total, normed = outputs(x, y, weight, bias, center, eps, dtype)
    options = tiling(x.shape[1])
    forward_kernel[(triton.cdiv(x.shape[0], options["BN"]),)](
        x, y, weight, bias, total, normed, eps, *x.shape,
        ADD=y is not None, BIAS=bias is not None, CENTER=center, **options,
    )  # fmt: skip
    return total, normed


@forward.register_fake
def outputs(x, y, weight, bias, center, eps, dtype):
    return x.new_empty(0 if y is None else x.shape, dtype=wider(x, y)), x.new_empty(x.shape, dtype=dtype)


def wider(x: torch.Tensor, y: torch.Tensor | None) -> torch.dtype:
    return x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)


@operator("mad::add_norm_backward")
def backward(
    dn: torch.Tensor, ds: torch.Tensor | None, total: torch.Tensor, weight: torch.Tensor,
    second: torch.dtype | None, biased: bool, center: bool, eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradient of x, of total's type; that of y, of the type `second`, empty without one; of weight and, where
    `biased`, bias, (1 or 2, D) fp32."""
    dx, dy, _ = gradients(dn, ds, total, weight, second, biased, center, eps)
    rows, width = total.shape
    options = tiling_backward(rows, width)
    shares = min(PROGRAMS, triton.cdiv(rows, options["BN"]))
    partial = total.new_empty(shares, 1 + biased, width, dtype=torch.float32)
    backward_kernel[(shares,)](
        dn, ds, total, weight, dx, dy, partial, eps, rows, width,
        SUM=ds is not None, ADDED=second is not None, BIAS=biased, CENTER=center, **options,
    )  # fmt: skip
    return dx, dy, sum_shares(partial)


@backward.register_fake
def gradients(dn, ds, total, weight, second, biased, center, eps):
    dy = total.new_empty(0 if second is None else total.shape, dtype=second or total.dtype)
    return torch.empty_like(total), dy, total.new_empty(1 + biased, total.shape[1], dtype=torch.float32)


def save(ctx, inputs, output):
    x, y, weight, bias, ctx.center, ctx.eps, _ = inputs
    ctx.types = x.dtype, None if y is None else y.dtype, weight.dtype, None if bias is None else bias.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if y is None else output[0], weight)


def differentiate(ctx, ds, dn):
    total, weight = ctx.saved_tensors
    of_x, of_y, of_weight, of_bias = ctx.types
    dn = torch.zeros_like(total) if dn is None else dn.contiguous()
    ds = None if ds is None or of_y is None else ds.contiguous()
    dx, dy, sums = backward(dn, ds, total, weight, of_y, of_bias is not None, ctx.center, ctx.eps)
    bias = None if of_bias is None else sums[-1].to(of_bias)
    return dx.to(of_x), None if of_y is None else dy, sums[0].to(of_weight), bias, None, None, None


forward.register_autograd(differentiate, setup_context=save)


def add_norm(x, y, weight, bias, *, center: bool, eps: float, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels.add_norm."""
    rows, others = (None if t is None else t.reshape(-1, t.shape[-1]).contiguous() for t in (x, y))
    bias = None if bias is None else bias.contiguous()
    total, normed = forward(rows, others, weight.contiguous(), bias, center, eps, dtype or wider(x, y))
    return x if y is None else total.view(x.shape), normed.view(x.shape)
