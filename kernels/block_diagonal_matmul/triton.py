"""Block-diagonal products in Triton: a tile of rows and of one block's outputs a program.

Feature (g, i) of the input lies at g x_g + i x_i, output (g, o) at g y_g + o y_o: with other strides than (I, 1) and
(O, 1) the kernels also do the permuted product of a Monarch matrix (`kernels.monarch_matmul`). Gradients of the blocks
are sums over shares of the rows, added afterwards in a fixed order.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.activations import activate, slope
from kernels.tiles import bucket, operator, precision, sum_shares

PROGRAMS = 264  # two for each SM of an H100: as many shares of the rows are made for the blocks' gradients


@triton.jit
def _input(x, g, rows, i, N, IN, x_row, x_g, x_i):
    """(rows, i) of block g."""
    place = x + rows.to(tl.int64)[:, None] * x_row + g * x_g + i[None, :] * x_i
    return tl.load(place, mask=(rows[:, None] < N) & (i[None, :] < IN), other=0.0)


@triton.jit
def _weights(w, g, i, o, IN, OUT, w_g, w_i, w_o):
    return tl.load(
        w + g * w_g + i[:, None] * w_i + o[None, :] * w_o, mask=(i[:, None] < IN) & (o[None, :] < OUT), other=0.0
    )


@triton.jit
def product_kernel(
    x, w, y, N, IN, OUT, x_row, x_g, x_i, w_g, w_i, w_o, y_row, y_g, y_o,
    BN: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1)
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    o = tl.program_id(2) * BO + tl.arange(0, BO)
    total = tl.zeros((BN, BO), tl.float32)
    for first in range(0, IN, BI):
        i = first + tl.arange(0, BI)
        tile = _input(x, g, rows, i, N, IN, x_row, x_g, x_i)
        total = tl.dot(tile, _weights(w, g, i, o, IN, OUT, w_g, w_i, w_o), total, input_precision=PRECISION)
    place = y + rows.to(tl.int64)[:, None] * y_row + g * y_g + o[None, :] * y_o
    tl.store(place, total.to(y.dtype.element_ty), mask=(rows[:, None] < N) & (o[None, :] < OUT))


@triton.jit
def glu_kernel(
    x, gate, value, dy, y, y_value, N, IN, OUT, x_row, w_g, w_i, w_o,
    ACTIVATION: tl.constexpr, BACKWARD: tl.constexpr,
    BN: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = activation(x gate) * (x value); BACKWARD: the gradients of x gate in y, and of x value in y_value."""
    g = tl.program_id(1)
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    o = tl.program_id(2) * BO + tl.arange(0, BO)
    a = tl.zeros((BN, BO), tl.float32)
    b = tl.zeros((BN, BO), tl.float32)
    for first in range(0, IN, BI):
        i = first + tl.arange(0, BI)
        tile = _input(x, g, rows, i, N, IN, x_row, IN, 1)
        a = tl.dot(tile, _weights(gate, g, i, o, IN, OUT, w_g, w_i, w_o), a, input_precision=PRECISION)
        b = tl.dot(tile, _weights(value, g, i, o, IN, OUT, w_g, w_i, w_o), b, input_precision=PRECISION)
    place = rows.to(tl.int64)[:, None] * (tl.num_programs(1) * OUT) + g * OUT + o[None, :]
    inside = (rows[:, None] < N) & (o[None, :] < OUT)
    if BACKWARD:
        gradient = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + place, (gradient * b * slope(a, ACTIVATION)).to(y.dtype.element_ty), mask=inside)
        tl.store(y_value + place, (gradient * activate(a, ACTIVATION)).to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(y + place, (activate(a, ACTIVATION) * b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def weights_kernel(
    x, dy, partial, N, IN, OUT, TILES, x_row, x_g, x_i, y_row, y_g, y_o,
    BN: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """This share of the rows' part of dw, in partial (shares, G, I, O)."""
    g = tl.program_id(1)
    share = tl.program_id(2)
    i = tl.program_id(0) // TILES * BI + tl.arange(0, BI)
    o = tl.program_id(0) % TILES * BO + tl.arange(0, BO)
    total = tl.zeros((BI, BO), tl.float32)
    for first in range(share * BN, N, tl.num_programs(2) * BN):
        rows = first + tl.arange(0, BN)
        tile = _input(x, g, rows, i, N, IN, x_row, x_g, x_i)
        gradient = _input(dy, g, rows, o, N, OUT, y_row, y_g, y_o)
        total = tl.dot(tl.trans(tile), gradient, total, input_precision=PRECISION)
    place = partial + ((share * tl.num_programs(1) + g) * IN + i[:, None]) * OUT + o[None, :]
    tl.store(place, total, mask=(i[:, None] < IN) & (o[None, :] < OUT))


def tiling(rows: int, inputs: int, outputs: int, dtype: torch.dtype, products: int = 1) -> dict:
    """Blocks of rows, inputs and outputs for `products` sums at a time, warps and pipeline stages."""
    if dtype == torch.float32:
        n, i, o = bucket(rows, 16, 64), bucket(inputs, 16, 32), bucket(outputs, 16, 32)
    else:
        n, i, o = bucket(rows, 16, 128 // products), bucket(inputs, 16, 64), bucket(outputs, 16, 128)
    return {
        "BN": n, "BI": i, "BO": o, "PRECISION": precision(dtype),
        "num_warps": 8 if products * n * o >= 64 * 128 else 4, "num_stages": 3,
    }  # fmt: skip


@operator("mad::block_product")
def product(x: torch.Tensor, w: torch.Tensor, transposed: bool, x_at: list[int], y_at: list[int]) -> torch.Tensor:
    """x (N, G I), w (G, I, O), or transposed (G, O, I), of x's type; strides of (g, i) in x and of (g, o) in y."""
    blocks = w.shape[0]
    w_g, w_i, w_o = (w.stride(0), w.stride(2), w.stride(1)) if transposed else w.stride()
    inputs, outputs = (w.shape[2], w.shape[1]) if transposed else (w.shape[1], w.shape[2])
    y = x.new_empty(x.shape[0], blocks * outputs)
    options = tiling(x.shape[0], inputs, outputs, x.dtype)
    grid = (triton.cdiv(x.shape[0], options["BN"]), blocks, triton.cdiv(outputs, options["BO"]))
    if y.numel():
        product_kernel[grid](
            x, w, y, x.shape[0], inputs, outputs, x.stride(0), *x_at, w_g, w_i, w_o, y.stride(0), *y_at, **options
        )
    return y


@product.register_fake
def _(x, w, transposed, x_at, y_at):
    return x.new_empty(x.shape[0], w.shape[0] * w.shape[1 if transposed else 2])


@operator("mad::block_gradient")
def weights_gradient(
    x: torch.Tensor, dy: torch.Tensor, blocks: int, inputs: int, outputs: int, x_at: list[int], y_at: list[int]
) -> torch.Tensor:
    """dw (G, I, O), fp32."""
    options = tiling(x.shape[0], inputs, outputs, x.dtype)
    options["BI"] = bucket(inputs, 16, 64)
    options["BN"] = min(options["BN"], 32 if x.dtype == torch.float32 else 64)
    tiles = triton.cdiv(outputs, options["BO"])
    programs = triton.cdiv(inputs, options["BI"]) * tiles
    shares = max(1, min(triton.cdiv(x.shape[0], options["BN"]), PROGRAMS // (programs * blocks)))
    partial = x.new_empty(shares, blocks, inputs, outputs, dtype=torch.float32)
    weights_kernel[(programs, blocks, shares)](
        x, dy, partial, x.shape[0], inputs, outputs, tiles, x.stride(0), *x_at, dy.stride(0), *y_at, **options
    )
    return sum_shares(partial)


@weights_gradient.register_fake
def _(x, dy, blocks, inputs, outputs, x_at, y_at):
    return x.new_empty(blocks, inputs, outputs, dtype=torch.float32)


def save(ctx, inputs, output):
    x, w, ctx.transposed, ctx.x_at, ctx.y_at = inputs
    ctx.save_for_backward(x, w)


def differentiate(ctx, dy):
    x, w = ctx.saved_tensors
    dy = dy.contiguous()
    dx = product(dy, w, not ctx.transposed, ctx.y_at, ctx.x_at)
    if ctx.transposed:
        dw = weights_gradient(dy, x, *w.shape, ctx.y_at, ctx.x_at)
    else:
        dw = weights_gradient(x, dy, *w.shape, ctx.x_at, ctx.y_at)
    return dx, dw.to(w.dtype), None, None, None


product.register_autograd(differentiate, setup_context=save)


def launch_glu(x, gate, value, dy, activation: str) -> list[torch.Tensor]:
    blocks, inputs, outputs = gate.shape
    results = [x.new_empty(x.shape[0], blocks * outputs) for _ in range(1 if dy is None else 2)]
    options = tiling(x.shape[0], inputs, outputs, x.dtype, products=2)
    grid = (triton.cdiv(x.shape[0], options["BN"]), blocks, triton.cdiv(outputs, options["BO"]))
    glu_kernel[grid](
        x, gate, value, x if dy is None else dy, results[0], results[-1], x.shape[0], inputs, outputs, x.stride(0),
        *gate.stride(), ACTIVATION=activation, BACKWARD=dy is not None, **options,
    )  # fmt: skip
    return results


@operator("mad::block_glu")
def glu(x: torch.Tensor, gate: torch.Tensor, value: torch.Tensor, activation: str) -> torch.Tensor:
    return launch_glu(x, gate, value, None, activation)[0]


@glu.register_fake
def _(x, gate, value, activation):
    return x.new_empty(x.shape[0], gate.shape[0] * gate.shape[2])


@operator("mad::block_glu_backward")
def glu_backward(
    x: torch.Tensor, gate: torch.Tensor, value: torch.Tensor, dy: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x gate and of x value, which are computed again."""
    first, second = launch_glu(x, gate, value, dy, activation)
    return first, second


@glu_backward.register_fake
def _(x, gate, value, dy, activation):
    return torch.empty_like(dy), torch.empty_like(dy)


def save_glu(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def differentiate_glu(ctx, dy):
    x, gate, value = ctx.saved_tensors
    _, inputs, outputs = gate.shape
    x_at, y_at = [inputs, 1], [outputs, 1]
    gradients = glu_backward(x, gate, value, dy.contiguous(), ctx.activation)
    dx = sum(product(g, w, True, y_at, x_at) for g, w in zip(gradients, (gate, value), strict=True))
    dw = (weights_gradient(x, g, *gate.shape, x_at, y_at).to(gate.dtype) for g in gradients)
    return dx, *dw, None


glu.register_autograd(differentiate_glu, setup_context=save_glu)


def block_diagonal_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """See kernels.block_diagonal_matmul."""
    blocks, inputs, outputs = w.shape
    y = product(x.reshape(-1, x.shape[-1]).contiguous(), w.to(x.dtype), False, [inputs, 1], [outputs, 1])
    return y.view(*x.shape[:-1], blocks * outputs)


def block_diagonal_glu(x: torch.Tensor, gate: torch.Tensor, value: torch.Tensor, *, activation: str) -> torch.Tensor:
    """See kernels.block_diagonal_glu."""
    gate, value = gate.to(x.dtype).contiguous(), value.to(x.dtype).contiguous()
    y = glu(x.reshape(-1, x.shape[-1]).contiguous(), gate, value, activation)
    return y.view(*x.shape[:-1], y.shape[-1])
