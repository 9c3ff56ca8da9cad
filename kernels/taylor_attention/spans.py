"""Gradients of Taylor attention in half precision, d up to 16, dv up to 128: spans of tokens, the states they find.

With g = dy / (eps + sum of weights), S = sum phi(k)^T v over the tokens before and R = sum phi(q)^T g over those after:

    gradient of phi(q) = g S^T        dv = phi(k) R        gradient of phi(k) = v R^T

First the states that spans find (`states.py`), then programs of C rows, all at once: within their span they meet pairs
of tokens, beyond it the state; dq and dk follow from the gradient of features by the product rule. States that stay in
registers, as forward (`chunks.py`), would spill here.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl

from kernels.linear_attention.sums import strides
from kernels.taylor_attention import chunks
from kernels.taylor_attention.features import FEATURES, D, add_product, add_read, back, columns, rounded
from kernels.taylor_attention.states import TILE, found, loaded_choices, states_kernel
from kernels.tiles import bucket, load_rows, store_rows


@triton.jit
def rows_kernel(
    x, u, z, w, dx, du, inverse, delta, states, sizes, forms, matrices, scale,
    H, T, d, N, W, x_b, x_h, x_t, u_b, u_h, u_t, z_b, z_h, z_t, w_b, w_h, w_t, dx_b, dx_h, dx_t, du_b, du_h, du_t,
    ROLE: tl.constexpr, NORMALIZE: tl.constexpr, SPAN: tl.constexpr, C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """ROLE "dq": dx of C queries, rows x = q, u = dy, columns z = k, w = v up to them.

    "dk", "dv" or "both": dx, du or both of C keys, rows x = k, u = v, columns z = q, w = dy from them on.
    """
    KEYS: tl.constexpr = ROLE == "dk" or ROLE == "dv" or ROLE == "both"
    DX: tl.constexpr = ROLE == "dq" or ROLE == "dk" or ROLE == "both"
    DU: tl.constexpr = ROLE == "dv" or ROLE == "both"
    programs = tl.cdiv(T, C)
    head, low = tl.program_id(0) // programs, tl.program_id(0) % programs * C
    batch, place_in = (head // H).to(tl.int64), head % H
    x += batch * x_b + place_in * x_h
    u += batch * u_b + place_in * u_h
    z += batch * z_b + place_in * z_h
    w += batch * w_b + place_in * w_h
    inverse += head.to(tl.int64) * T
    delta += head.to(tl.int64) * T
    tile = tl.program_id(1) * BN  # where there is a dx, the only one
    u, w, du, live = u + tile, w + tile, du + tile, N - tile
    i, n = low + tl.arange(0, C), tile + tl.arange(0, BN)
    # what is met for certain is asked for at once
    own = load_rows(x, i, T, x_t, d, D)
    rows = load_rows(u, i, T, u_t, live, BN) if DX else own
    row = head * tl.cdiv(T, SPAN) + low // SPAN
    c0, c1, c2 = loaded_choices(matrices, 0), loaded_choices(matrices, 64), loaded_choices(matrices, 128)
    s0, s1 = found(states, sizes, row, tile, n, W, 0), found(states, sizes, row, tile, n, W, 64)
    s2 = found(states, sizes, row, tile, n, W, 128)
    if BN <= 64:
        across, values = load_rows(z, i, T, z_t, d, D), load_rows(w, i, T, w_t, live, BN)

    dx_acc, du_acc = tl.zeros((C, D), tl.float32), tl.zeros((C, BN), tl.float32)
    slope = 0.0
    if NORMALIZE and DX:
        e, wide = tl.arange(0, D), own.to(tl.float32)
        form = forms + row.to(tl.int64) * (D * D + D)
        squares = rounded(tl.load(form + e[:, None] * D + e[None, :]) * scale, own.dtype)
        singles = tl.load(form + D * D + e)[None, :] * scale
        dx_acc = add_read(wide, squares, dx_acc) * scale
        dx_acc += singles
        if ROLE == "dq":
            slope = tl.load(delta + i, mask=i < T, other=0.0)
            dx_acc *= slope[:, None]
    first = tl.dot(own, c0[0])
    dx_acc, du_acc = through(own, rows, first, dx_acc, du_acc, s0, c0, 0, DX, DU)
    dx_acc, du_acc = through(own, rows, first, dx_acc, du_acc, s1, c1, 64, DX, DU)
    dx_acc, du_acc = through(own, rows, first, dx_acc, du_acc, s2, c2, 128, DX, DU)
    if BN > 64:  # more at once would leave shared memory for two programs alone
        across, values = load_rows(z, i, T, z_t, d, D), load_rows(w, i, T, w_t, live, BN)
    dx_acc, du_acc = meet(
        own, rows, across, values, dx_acc, du_acc, slope, inverse, delta, i, T, scale, True, KEYS, DX, DU, NORMALIZE
    )
    begin = low // SPAN * SPAN
    for j0 in range(low + C if KEYS else begin, tl.minimum(T, begin + SPAN) if KEYS else low, C):
        j = j0 + tl.arange(0, C)
        across, values = load_rows(z, j, T, z_t, d, D), load_rows(w, j, T, w_t, live, BN)
        dx_acc, du_acc = meet(
            own, rows, across, values, dx_acc, du_acc, slope, inverse, delta, j, T, scale, False,
            KEYS, DX, DU, NORMALIZE,
        )  # fmt: skip
    if DU:
        store_rows(du + batch * du_b + place_in * du_h, i, T, du_t, live, du_acc)
    if ROLE == "dq" and NORMALIZE:
        dx_acc *= tl.load(inverse + i, mask=i < T, other=0.0)[:, None]
    if DX:
        store_rows(dx + batch * dx_b + place_in * dx_h, i, T, dx_t, d, dx_acc)


@triton.jit
def meet(
    x, u, z, w, dx, du, slope, inverse, delta, j, T, scale,
    DIAGONAL: tl.constexpr, KEYS: tl.constexpr, DX: tl.constexpr, DU: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """dx and du with pairs of rows x, u and columns z, w, tokens j; DIAGONAL: those of the rows themselves."""
    score = tl.dot(x, tl.trans(z)) * scale  # (C, C)
    weight = 1.0
    if KEYS and NORMALIZE:
        weight = tl.load(inverse + j, mask=j < T, other=0.0)[None, :]
    if DIAGONAL:
        weight = tl.where((j[:, None] <= j[None, :]) if KEYS else (j[:, None] >= j[None, :]), weight, 0.0)
    if DU:
        p = (1 + score + 0.5 * score * score) * weight
        du = add_product(p, w, du)
    if DX:
        change = tl.dot(u, tl.trans(w))
        if NORMALIZE:
            change += tl.load(delta + j, mask=j < T, other=0.0)[None, :] if KEYS else slope[:, None]
        dx = add_product(change * (scale + score * scale) * weight, z, dx)
    return dx, du


@triton.jit
def through(x, u, first, dx, du, state, choice, LOW: tl.constexpr, DX: tl.constexpr, DU: tl.constexpr):
    """du (C, BN) with what rows x find in a block of the state, dx (C, D) with what they have from u through it."""
    matrix, size = state
    one, two = columns(x, first, choice, LOW)
    if DU:
        du = add_read(one * two, state, du)
    if DX:
        dx = back(tl.dot(u, tl.trans(matrix)) * size, one, two, dx, choice)
    return dx, du


SPAN = 128  # tokens that meet as pairs
WIDEST = 128  # values


def fits(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dy: torch.Tensor, normalize: bool) -> bool:
    """Whether these kernels take over from those of `sums.py`: on a GPU only where an H100 showed that they are right.

    Of other configurations Triton 3.6's code, on asynchronous matrix units, reads outside its memory; so it did here
    with loads that are not pipelined.
    """
    if not chunks.fits(q) or v.shape[3] > WIDEST:
        return False
    whole = q.shape[3] == D.value and v.shape[3] > 32
    whole = whole and all(n % 16 == 0 for t in (q, k, v, dy) for n in (t.shape[3], *t.stride()[:3]))
    return not q.is_cuda or (whole and normalize and q.dtype == torch.bfloat16)


def blocks(width: int, part: str, dtype: torch.dtype) -> dict[str, int]:
    """Tokens, columns, warps and stages of the programs that make the "states", and from them a role's gradients."""
    widest = TILE.value if part in ("states", "dv") else 128
    return {"C": 64, "BN": bucket(width, 16, widest), "num_warps": 4, "num_stages": 2}


def roles(dtype: torch.dtype) -> tuple[str, ...]:
    """Which launches make the keys' gradients: in fp16, where rows are scaled, registers do not do for both."""
    return ("dk", "dv") if dtype == torch.float16 else ("both",)


def backward(q, k, v, inverse, delta, dy, normalize: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    found = Found(q, v, normalize)
    found.make(k, v, inverse, delta, False)
    found.read("dq", q, dy, k, v, dq, dy, inverse, delta)
    found.make(q, dy, inverse, delta, True)
    for role in roles(q.dtype):
        found.read(role, k, v, q, dy, dk, dv, inverse, delta)
    return dq, dk, dv


class Found:
    """What spans find, of the one direction or of the other, and the launches that make and read it."""

    def __init__(self, q: torch.Tensor, v: torch.Tensor, normalize: bool):
        self.heads, self.length, self.width = q.shape[0] * q.shape[1], q.shape[2], v.shape[3]
        wide = triton.cdiv(self.width, 16) * 16
        self.sizes = (q.shape[1], q.shape[2], q.shape[3], self.width, wide)
        self.scale, self.dtype = q.shape[3] ** -0.5, q.dtype
        self.options = {"NORMALIZE": normalize, "SPAN": SPAN}
        spans, self.tiles = triton.cdiv(self.length, SPAN), triton.cdiv(self.width, TILE.value)
        half = q.dtype == torch.float16
        self.tensors = (
            q.new_empty(self.heads, spans, FEATURES.value, wide),
            q.new_empty((self.heads, spans, 3, self.tiles) if half else 0, dtype=torch.float32),
            q.new_empty((self.heads, spans, D.value + 1, D.value) if normalize else 0, dtype=torch.float32),
            q.new_empty(D.value, 256),
        )

    def make(self, z, w, inverse, delta, reverse: bool) -> None:
        programs = self.heads * (3 + self.options["NORMALIZE"]) * self.tiles
        states_kernel[(programs,)](
            z, w, inverse, delta, *self.tensors, self.scale, *self.sizes, *strides(z, w),
            REVERSE=reverse, **self.options, **blocks(self.width, "states", self.dtype),
        )  # fmt: skip

    def read(self, role: str, x, u, z, w, dx, du, inverse, delta) -> None:
        block = blocks(self.width, role, self.dtype)
        programs = (self.heads * triton.cdiv(self.length, block["C"]), triton.cdiv(self.width, block["BN"]))
        rows_kernel[programs](
            x, u, z, w, dx, du, inverse, delta, *self.tensors, self.scale, *self.sizes,
            *strides(x, u, z, w, dx, du), ROLE=role, **self.options, **block,
        )  # fmt: skip
