"""Hedgehog's feature map in Triton: the product with W and both softmaxes in one pass over the data.

Backward forms the product again. Gradients of W are sums over shares of the tokens, added afterwards in order. Where
heads are wide, a program has some of the columns of x in these sums, and goes through the others for the product.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import bucket, grid, operator, precision, sequence, sum_shares

PROGRAMS = 264  # two for each SM of an H100


@triton.jit
def _tiles(x, w, t, h, T, d, f, low, BD: tl.constexpr, F: tl.constexpr):
    """Columns of x from low on, (BT, BD), and their rows of W, (BD, F)."""
    c = low + tl.arange(0, BD)
    j = tl.arange(0, F)
    tile = tl.load(x + t[:, None] * d + c[None, :], mask=(t < T)[:, None] & (c < d)[None, :], other=0.0)
    place = w + h * d * f + c[:, None] * f + j[None, :]
    return tile, tl.load(place, mask=(c < d)[:, None] & (j < f)[None, :], other=0.0)


@triton.jit
def _softmaxes(
    x, w, t, h, T, d, f, BT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Both softmaxes of x W, (BT, F), zero in columns past f."""
    y = tl.zeros((BT, F), tl.float32)
    for low in tl.static_range(0, D, BD):
        tile, weight = _tiles(x, w, t, h, T, d, f, low, BD, F)
        y = tl.dot(tile, weight, y, input_precision=PRECISION)
    real = (tl.arange(0, F) < f)[None, :]
    up = tl.where(real, y, float("-inf"))
    up = tl.exp(up - tl.max(up, 1)[:, None])
    down = tl.where(real, -y, float("-inf"))
    down = tl.exp(down - tl.max(down, 1)[:, None])
    return up / tl.sum(up, 1)[:, None], down / tl.sum(down, 1)[:, None]


@triton.jit
def forward_kernel(
    x, w, out, T, d, f,
    BT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = sequence()
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    h = tl.program_id(1).to(tl.int64)
    up, down = _softmaxes(x + head * T * d, w, t, h, T, d, f, BT, D, BD, F, PRECISION)
    j = tl.arange(0, F)
    place = out + head * T * 2 * f + t[:, None] * (2 * f) + j[None, :]
    inside = (t < T)[:, None] & (j < f)[None, :]
    tl.store(place, up.to(out.dtype.element_ty), mask=inside)
    tl.store(place + f, down.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    x, w, dy, dx, partial, B, H, T, d, f,
    BT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Columns of dx, and of this share of the sequences' part of dw, in partial (shares, H, d, f)."""
    h = tl.program_id(0).to(tl.int64)
    low = tl.program_id(2) * BD
    c = low + tl.arange(0, BD)
    j = tl.arange(0, F)
    total = tl.zeros((BD, F), tl.float32)
    for b in range(tl.program_id(1), B, tl.num_programs(1)):
        head = tl.cast(b, tl.int64) * H + h
        for first in range(0, T, BT):
            t = first + tl.arange(0, BT)
            up, down = _softmaxes(x + head * T * d, w, t, h, T, d, f, BT, D, BD, F, PRECISION)
            place = dy + head * T * 2 * f + t[:, None] * (2 * f) + j[None, :]
            inside = (t < T)[:, None] & (j < f)[None, :]
            g = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            gradient = up * (g - tl.sum(g * up, 1)[:, None])
            g = tl.load(place + f, mask=inside, other=0.0).to(tl.float32)
            gradient -= down * (g - tl.sum(g * down, 1)[:, None])
            tile, weight = _tiles(x + head * T * d, w, t, h, T, d, f, low, BD, F)
            gradient = gradient.to(tile.dtype)
            out = tl.dot(gradient, tl.trans(weight), input_precision=PRECISION)
            place = dx + head * T * d + t[:, None] * d + c[None, :]
            tl.store(place, out.to(dx.dtype.element_ty), mask=(t < T)[:, None] & (c < d)[None, :])
            total = tl.dot(tl.trans(tile), gradient, total, input_precision=PRECISION)
    place = partial + (tl.program_id(1) * H + h) * d * f + c[:, None] * f + j[None, :]
    tl.store(place, total, mask=(c < d)[:, None] & (j < f)[None, :])


def tiling(x: torch.Tensor, w: torch.Tensor, backward: bool) -> dict:
    single = x.dtype == torch.float32
    widths = {"D": bucket(x.shape[3], 16, 256), "F": bucket(w.shape[2], 16, 256)}
    columns = widths["D"]
    if backward and columns > (64 if single else 128):  # of which one program sums dw
        columns = 32 if single else 128
    schedule = {"num_warps": 8 if max(widths.values()) > 32 else 4, "num_stages": 1 if single else 2}
    return widths | schedule | {"BT": 16 if single else 32, "BD": columns, "PRECISION": precision(x.dtype)}


@operator("mad::hedgehog_features")
def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, d), w (H, d, f) of x's type, both contiguous -> (B, H, T, 2 f)."""
    batch, heads, length, d = x.shape
    out = x.new_empty(batch, heads, length, 2 * w.shape[2])
    options = tiling(x, w, False)
    programs = grid(triton.cdiv(length, options["BT"]), heads, batch)
    forward_kernel[programs](x, w, out, length, d, w.shape[2], **options)
    return out


@features.register_fake
def _(x, w):
    return x.new_empty(*x.shape[:3], 2 * w.shape[2])


@operator("mad::hedgehog_features_backward")
def features_backward(x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """dx, and dw in fp32."""
    batch, heads, length, d = x.shape
    shares = max(1, min(batch, PROGRAMS // heads))
    dx, partial = torch.empty_like(x), x.new_empty(shares, *w.shape, dtype=torch.float32)
    options = tiling(x, w, True)
    programs = (heads, shares, triton.cdiv(d, options["BD"]))
    backward_kernel[programs](x, w, dy, dx, partial, batch, heads, length, d, w.shape[2], **options)
    return dx, sum_shares(partial)


@features_backward.register_fake
def _(x, w, dy):
    return torch.empty_like(x), w.new_empty(w.shape, dtype=torch.float32)


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def differentiate(ctx, dy):
    x, w = ctx.saved_tensors
    dx, dw = features_backward(x, w, dy.contiguous())
    return dx, dw.to(w.dtype)


features.register_autograd(differentiate, setup_context=save)
