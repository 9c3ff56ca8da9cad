"""The gated channel mixer in Triton: a block of rows a program, which walks through the width.

What is wide, gate and value (N, 2 W) and their product (N, W), stays in registers forward, and backward is computed
again from x. Backward writes dz, the gradients of gate and value, and h, the product, as the gradients of the weights
are sums over all rows: two plain products with them, for which cuBLAS is hard to beat.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.activations import activate, slope
from kernels.tiles import bucket, operator


@triton.jit
def _both(first, WIDTH, BW: tl.constexpr):
    """BW rows of the gate and as many of the value: their places in `up` and dz, and in the width."""
    c = tl.arange(0, 2 * BW)
    w = first + c % BW
    return tl.where(c < BW, w, WIDTH + w), w


@triton.jit
def _weights(up, i, places, w, IN, WIDTH):
    """(i, places) of up's transpose."""
    inside = (i[:, None] < IN) & (w[None, :] < WIDTH)
    return tl.load(up + places[None, :] * IN + i[:, None], mask=inside, other=0.0)


@triton.jit
def _halves(z, BN: tl.constexpr, BW: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(z, (BN, 2, BW)), (0, 2, 1)))


@triton.jit
def _tile(x, rows, columns, N, C):
    """(rows, columns) of contiguous x (N, C)."""
    inside = (rows[:, None] < N) & (columns[None, :] < C)
    return tl.load(x + rows[:, None] * C + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(x, rows, columns, N, C, value):
    """Into (rows, columns) of contiguous x (N, C)."""
    inside = (rows[:, None] < N) & (columns[None, :] < C)
    tl.store(x + rows[:, None] * C + columns[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(
    x, up, down, y, N, IN, WIDTH, OUT, ACTIVATION: tl.constexpr,
    BN: tl.constexpr, BI: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BN
    rows, i, o, left = tl.arange(0, BN), tl.arange(0, BI), tl.arange(0, BO), N - start
    tile = _tile(x + start * IN, rows, i, left, IN)
    total = tl.zeros((BN, BO), tl.float32)
    for first in range(0, WIDTH, BW):
        w = first + tl.arange(0, BW)
        places, both = _both(first, WIDTH, BW)
        a, b = _halves(tl.dot(tile, _weights(up, i, places, both, IN, WIDTH), input_precision="ieee"), BN, BW)
        h = (activate(a, ACTIVATION) * b).to(x.dtype.element_ty)
        total = tl.dot(h, tl.trans(_tile(down, o, w, OUT, WIDTH)), total, input_precision="ieee")
    _put(y + start * OUT, rows, o, left, OUT, total)


@triton.jit
def backward_kernel(
    x, up, down, dy, dx, dz, h, N, IN, WIDTH, OUT, ACTIVATION: tl.constexpr,
    BN: tl.constexpr, BI: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """dx, and for the weights' gradients dz = [da, db] (N, 2 WIDTH) and h = activation(a) b (N, WIDTH)."""
    start = tl.program_id(0).to(tl.int64) * BN
    rows, i, o, left = tl.arange(0, BN), tl.arange(0, BI), tl.arange(0, BO), N - start
    h += start * WIDTH
    dz += 2 * start * WIDTH
    tile = _tile(x + start * IN, rows, i, left, IN)
    gradient = _tile(dy + start * OUT, rows, o, left, OUT)
    total = tl.zeros((BN, BI), tl.float32)
    for first in range(0, WIDTH, BW):
        w = first + tl.arange(0, BW)
        places, both = _both(first, WIDTH, BW)
        weights = _weights(up, i, places, both, IN, WIDTH)
        a, b = _halves(tl.dot(tile, weights, input_precision="ieee"), BN, BW)
        dh = tl.dot(gradient, _tile(down, o, w, OUT, WIDTH), input_precision="ieee")
        active = activate(a, ACTIVATION)
        _put(h, rows, w, left, WIDTH, active * b)
        halves = tl.join(dh * b * slope(a, ACTIVATION), dh * active)
        gradients = tl.reshape(tl.permute(halves, (0, 2, 1)), (BN, 2 * BW)).to(x.dtype.element_ty)
        inside = (rows[:, None] < left) & (both[None, :] < WIDTH)
        tl.store(dz + rows[:, None] * (2 * WIDTH) + places[None, :], gradients, mask=inside)
        total = tl.dot(gradients, tl.trans(weights), total, input_precision="ieee")
    _put(dx + start * IN, rows, i, left, IN, total)


def tiling(inputs: int, outputs: int, dtype: torch.dtype) -> dict:
    """Blocks of rows, inputs, width and outputs, warps and pipeline stages, as an H100 showed at MAD's lengths."""
    options = {"BI": bucket(inputs), "BO": bucket(outputs)}
    if dtype == torch.float32:  # for those who insist: without matrix units, whose three products a product do not fit
        return options | {"BN": 16, "BW": 16, "num_warps": 8, "num_stages": 1}
    return options | {"BN": 64, "BW": 32, "num_warps": 4, "num_stages": 3}


@operator("mad::gated_mlp")
def forward(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, activation: str) -> torch.Tensor:
    """x (N, D), up (2 W, D), down (O, W), contiguous and of one type; multiples of 16 but N -> (N, O)."""
    y = x.new_empty(x.shape[0], down.shape[0])
    options = tiling(x.shape[1], down.shape[0], x.dtype)
    if y.numel():
        forward_kernel[(triton.cdiv(x.shape[0], options["BN"]),)](
            x, up, down, y, *x.shape, down.shape[1], down.shape[0], ACTIVATION=activation, **options
        )
    return y


@forward.register_fake
def _(x, up, down, activation):
    return x.new_empty(x.shape[0], down.shape[0])


@operator("mad::gated_mlp_backward")
def backward(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, dy: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx (N, D), dz (N, 2 W) and h (N, W)."""
    width = down.shape[1]
    dx, dz, h = torch.empty_like(x), x.new_empty(x.shape[0], 2 * width), x.new_empty(x.shape[0], width)
    options = tiling(x.shape[1], down.shape[0], x.dtype)
    if x.numel():
        backward_kernel[(triton.cdiv(x.shape[0], options["BN"]),)](
            x, up, down, dy, dx, dz, h, *x.shape, width, down.shape[0], ACTIVATION=activation, **options
        )
    return dx, dz, h


@backward.register_fake
def _(x, up, down, dy, activation):
    return torch.empty_like(x), x.new_empty(x.shape[0], up.shape[0]), x.new_empty(x.shape[0], down.shape[1])


def save(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def differentiate(ctx, dy):
    x, up, down = ctx.saved_tensors
    dy = dy.contiguous()
    dx, dz, h = backward(x, up, down, dy, ctx.activation)
    _, trains_up, trains_down, _ = ctx.needs_input_grad
    return dx, dz.t() @ x if trains_up else None, dy.t() @ h if trains_down else None, None


forward.register_autograd(differentiate, setup_context=save)


def gated_mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, *, activation: str) -> torch.Tensor:
    """See kernels.gated_mlp."""
    out, width = down.shape
    rows, up, down = x.reshape(-1, x.shape[-1]), up.to(x.dtype).view(2, width, x.shape[-1]), down.to(x.dtype)
    rows, up, down = _filled_up(rows, -1), _filled_up(_filled_up(up, -1), 1), _filled_up(_filled_up(down, -1), 0)
    y = forward(rows.contiguous(), up.flatten(0, 1).contiguous(), down.contiguous(), activation)
    return y[:, :out].reshape(*x.shape[:-1], out)


def _filled_up(x: torch.Tensor, dim: int) -> torch.Tensor:
    """With zeros, which change no product, to a multiple of 16: other rows are loaded element by element."""
    missing = -x.shape[dim] % 16
    size = list(x.shape)
    size[dim] = missing
    return torch.cat([x, x.new_zeros(size)], dim) if missing else x
