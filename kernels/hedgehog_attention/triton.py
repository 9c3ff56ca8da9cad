"""Attention over Hedgehog's features in Triton: the operators, and the kernels over features in memory.

Without a window and for narrow heads `fused` forms features within the attention. Else `features` writes them. Then,
block of keys by block of keys, no weight reaches memory: a first pass over the window finds each row's largest exponent;
the second walks over all keys before the query, takes the product of features or, inside the window, the exponential,
and sums values and weights. Backward forms the weights again, in one kernel a block of queries and one a block of keys.
Without a window and beyond four times as many tokens as features, linear attention with a state takes over.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.hedgehog_attention import fused
from kernels.hedgehog_attention.features import features
from kernels.linear_attention import triton as linear
from kernels.linear_attention.triton import unit_stride
from kernels.sliding_attention.triton import _rows, _store
from kernels.tiles import bucket, grid, precision, sequence


@triton.jit
def _near(m, n, window):
    return (n[None, :] <= m[:, None]) & (n[None, :] > m[:, None] - window)


@triton.jit
def _weights(query, key, phi_q, phi_k, m, n, T, window, highest, scale, a, b,
             WINDOW: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Of queries m for keys n: the weights, the exponentials (zero outside the window), the products of features."""
    causal = (n[None, :] <= m[:, None]) & (m[:, None] < T)
    lin = tl.where(causal, tl.dot(phi_q, tl.trans(phi_k), input_precision=PRECISION), 0.0)
    near = tl.zeros_like(lin)
    weight = lin
    if WINDOW:
        inside = _near(m, n, window) & causal
        s = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        near = tl.exp(tl.where(inside, s - highest[:, None], float("-inf")))
        lin = tl.where(inside, 0.0, lin)
        weight = a * near + b * lin
    return weight, near, lin


@triton.jit
def forward_kernel(
    q, k, v, phi_q, phi_k, mix, y, total, highest, H, T, window, scale, eps, d, dv, f,
    WINDOW: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = sequence()
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    map_q = _rows(phi_q, head, m, T, f, F)
    query = map_q
    top = tl.zeros((BM,), tl.float32)
    a = 1.0
    b = 1.0
    if WINDOW:
        query = _rows(q, head, m, T, d, D)
        a = tl.load(mix + tl.program_id(1))
        b = tl.load(mix + H + tl.program_id(1))
        top = tl.full((BM,), float("-inf"), tl.float32)
        for block in range(tl.maximum(start - window + 1, 0) // BN * BN, tl.minimum(start + BM, T), BN):
            n = block + tl.arange(0, BN)
            s = tl.dot(query, tl.trans(_rows(k, head, n, T, d, D)), input_precision=PRECISION) * scale
            top = tl.maximum(top, tl.max(tl.where(_near(m, n, window), s, float("-inf")), 1))
        top = tl.where(m < T, top, 0.0)
        tl.store(highest + head * T + m, top, mask=m < T)
    sums = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, DV), tl.float32)
    for block in range(0, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        map_k = _rows(phi_k, head, n, T, f, F)
        key = map_k
        if WINDOW:
            key = _rows(k, head, n, T, d, D)
        weight, _, _ = _weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        value = _rows(v, head, n, T, dv, DV)
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
        sums += tl.sum(weight, 1)
    if NORMALIZE:
        acc /= (sums + tl.where(m < T, eps, 1.0))[:, None]
    _store(y, head, m, T, dv, acc, DV)
    tl.store(total + head * T + m, sums, mask=m < T)


@triton.jit
def queries_kernel(
    q, k, v, phi_q, phi_k, mix, dy, total, highest, delta, dq, d_phi, d_mix, H, T, window, scale, eps, d, dv, f,
    WINDOW: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of their features, and its part of the mix's (blocks, 2)."""
    head = sequence()
    start = tl.program_id(0) * BM
    m = start + tl.arange(0, BM)
    map_q = _rows(phi_q, head, m, T, f, F)
    gradient = _rows(dy, head, m, T, dv, DV)
    mean = tl.zeros((BM,), tl.float32)
    inverse = tl.full((BM,), 1.0, tl.float32)
    if NORMALIZE:
        mean = tl.load(delta + head * T + m, mask=m < T, other=0.0)
        inverse = 1 / (tl.load(total + head * T + m, mask=m < T, other=1.0) + eps)
    query = map_q
    top = tl.zeros((BM,), tl.float32)
    a = 1.0
    b = 1.0
    if WINDOW:
        query = _rows(q, head, m, T, d, D)
        top = tl.load(highest + head * T + m, mask=m < T, other=0.0)
        a = tl.load(mix + tl.program_id(1))
        b = tl.load(mix + H + tl.program_id(1))
    acc_q = tl.zeros((BM, D), tl.float32)
    acc_phi = tl.zeros((BM, F), tl.float32)
    sum_a = tl.zeros((BM,), tl.float32)
    sum_b = tl.zeros((BM,), tl.float32)
    for block in range(0, tl.minimum(start + BM, T), BN):
        n = block + tl.arange(0, BN)
        map_k = _rows(phi_k, head, n, T, f, F)
        key = map_k
        if WINDOW:
            key = _rows(k, head, n, T, d, D)
        _, near, lin = _weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        slope = tl.dot(gradient, tl.trans(_rows(v, head, n, T, dv, DV)), input_precision=PRECISION)
        slope = (slope - mean[:, None]) * inverse[:, None]
        far = (n[None, :] <= m[:, None]) & (m[:, None] < T)
        if WINDOW:
            far = far & ~_near(m, n, window)
            sum_a += tl.sum(slope * near, 1)
            sum_b += tl.sum(slope * lin, 1)
            acc_q = tl.dot((slope * near * (a * scale)).to(key.dtype), key, acc_q, input_precision=PRECISION)
        acc_phi = tl.dot(tl.where(far, slope * b, 0.0).to(map_k.dtype), map_k, acc_phi, input_precision=PRECISION)
    _store(d_phi, head, m, T, f, acc_phi, F)
    if WINDOW:
        _store(dq, head, m, T, d, acc_q, D)
        place = d_mix + (head * tl.num_programs(0) + tl.program_id(0)) * 2
        tl.store(place, tl.sum(tl.where(m < T, sum_a, 0.0), 0))
        tl.store(place + 1, tl.sum(tl.where(m < T, sum_b, 0.0), 0))


@triton.jit
def keys_kernel(
    q, k, v, phi_q, phi_k, mix, dy, total, highest, delta, dk, dvalue, d_phi, H, T, window, scale, eps, d, dv, f,
    WINDOW: tl.constexpr, NORMALIZE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, F: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys, of their features and of their values."""
    head = sequence()
    start = tl.program_id(0) * BN
    n = start + tl.arange(0, BN)
    map_k = _rows(phi_k, head, n, T, f, F)
    value = _rows(v, head, n, T, dv, DV)
    key = map_k
    a = 1.0
    b = 1.0
    if WINDOW:
        key = _rows(k, head, n, T, d, D)
        a = tl.load(mix + tl.program_id(1))
        b = tl.load(mix + H + tl.program_id(1))
    acc_k = tl.zeros((BN, D), tl.float32)
    acc_v = tl.zeros((BN, DV), tl.float32)
    acc_phi = tl.zeros((BN, F), tl.float32)
    for block in range(start // BM * BM, T, BM):
        m = block + tl.arange(0, BM)
        map_q = _rows(phi_q, head, m, T, f, F)
        gradient = _rows(dy, head, m, T, dv, DV)
        mean = tl.zeros((BM,), tl.float32)
        inverse = tl.full((BM,), 1.0, tl.float32)
        if NORMALIZE:
            mean = tl.load(delta + head * T + m, mask=m < T, other=0.0)
            inverse = 1 / (tl.load(total + head * T + m, mask=m < T, other=1.0) + eps)
        query = map_q
        top = tl.zeros((BM,), tl.float32)
        if WINDOW:
            query = _rows(q, head, m, T, d, D)
            top = tl.load(highest + head * T + m, mask=m < T, other=0.0)
        weight, near, _ = _weights(query, key, map_q, map_k, m, n, T, window, top, scale, a, b, WINDOW, PRECISION)
        scaled = tl.trans((weight * inverse[:, None]).to(gradient.dtype))
        acc_v = tl.dot(scaled, gradient, acc_v, input_precision=PRECISION)
        slope = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
        slope = (slope - mean[:, None]) * inverse[:, None]
        far = (n[None, :] <= m[:, None]) & (m[:, None] < T)
        if WINDOW:
            far = far & ~_near(m, n, window)
            ds = tl.trans((slope * near * (a * scale)).to(query.dtype))
            acc_k = tl.dot(ds, query, acc_k, input_precision=PRECISION)
        far_slope = tl.trans(tl.where(far, slope * b, 0.0).to(map_q.dtype))
        acc_phi = tl.dot(far_slope, map_q, acc_phi, input_precision=PRECISION)
    _store(dvalue, head, n, T, dv, acc_v, DV)
    _store(d_phi, head, n, T, f, acc_phi, F)
    if WINDOW:
        _store(dk, head, n, T, d, acc_k, D)


def tiling(q: torch.Tensor, v: torch.Tensor, phi: torch.Tensor, windowed: bool) -> dict:
    """Block sizes by widths: backward holds tiles of keys, features and values and their gradients at once."""
    widths = {"D": bucket(q.shape[3], 16, 256) if windowed else 16}
    widths |= {"DV": bucket(v.shape[3], 16, 256), "F": bucket(phi.shape[3], 16, 256)}
    total = sum(widths.values())
    single = q.dtype == torch.float32  # three TF32 products a product
    block = 16 if single else 64 if total <= 192 else 32 if total <= 320 else 16
    schedule = {"num_warps": 4 if total <= 64 or block < 64 and not single else 8, "num_stages": 1 if single else 2}
    return widths | schedule | {"BM": block, "BN": block, "PRECISION": precision(q.dtype)}


@torch.library.custom_op("mad::hedgehog_pairs", mutates_args=())
def pairs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    phi_q: torch.Tensor,
    phi_k: torch.Tensor,
    mix: torch.Tensor,
    window: int,
    normalize: bool,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, the sums of weights and the windows' largest exponents. mix (2, H) fp32; window 0: none."""
    batch, heads, length, d = q.shape
    y = torch.empty_like(v)
    total, highest = (q.new_zeros(batch, heads, length, dtype=torch.float32) for _ in range(2))
    options = tiling(q, v, phi_q, window > 0)
    forward_kernel[grid(triton.cdiv(length, options["BM"]), heads, batch)](
        q, k, v, phi_q, phi_k, mix, y, total, highest, heads, length, window, d**-0.5, eps, d, v.shape[3],
        phi_q.shape[3], WINDOW=window > 0, NORMALIZE=normalize, **options,
    )  # fmt: skip
    return y, total, highest


@pairs.register_fake
def _(q, k, v, phi_q, phi_k, mix, window, normalize, eps):
    return torch.empty_like(v), *(q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("mad::hedgehog_pairs_backward", mutates_args=())
def pairs_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    phi_q: torch.Tensor,
    phi_k: torch.Tensor,
    mix: torch.Tensor,
    y: torch.Tensor,
    total: torch.Tensor,
    highest: torch.Tensor,
    window: int,
    normalize: bool,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, length, d = q.shape
    delta = (dy.float() * y.float()).sum(-1)
    options = tiling(q, v, phi_q, window > 0)
    options |= {"WINDOW": window > 0, "NORMALIZE": normalize}
    blocks = triton.cdiv(length, options["BM"])
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.empty_like(v)
    d_phi_q, d_phi_k = torch.empty_like(phi_q), torch.empty_like(phi_k)
    d_mix = q.new_zeros(batch, heads, blocks, 2, dtype=torch.float32)
    given = (q, k, v, phi_q, phi_k, mix, dy, total, highest, delta)
    sizes = (heads, length, window, d**-0.5, eps, d, v.shape[3], phi_q.shape[3])
    programs = grid(blocks, heads, batch)
    queries_kernel[programs](*given, dq, d_phi_q, d_mix, *sizes, **options)
    keys_kernel[programs](*given, dk, dv, d_phi_k, *sizes, **options)
    return dq, dk, dv, d_phi_q, d_phi_k, d_mix.sum((0, 2)).t().contiguous()


@pairs_backward.register_fake
def _(dy, q, k, v, phi_q, phi_k, mix, y, total, highest, window, normalize, eps):
    return tuple(torch.empty_like(t) for t in (q, k, v, phi_q, phi_k, mix))


def save(ctx, inputs, output):
    *tensors, ctx.window, ctx.normalize, ctx.eps = inputs
    ctx.save_for_backward(*tensors, *output)


def differentiate(ctx, dy, *_):
    gradients = pairs_backward(dy.contiguous(), *ctx.saved_tensors, ctx.window, ctx.normalize, ctx.eps)
    return *gradients, None, None, None


pairs.register_autograd(differentiate, setup_context=save)


@torch.library.custom_op("mad::hedgehog_attention", mutates_args=())
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w_q: torch.Tensor, w_k: torch.Tensor, normalize: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and where normalised 1 / (eps + the sum of weights) in fp32, else empty. No feature in memory."""
    y, inverse = outputs(q, k, v, w_q, w_k, normalize, eps)
    fused.forward(q, k, v, w_q, w_k, y, inverse, normalize, eps)
    return y, inverse


@attend.register_fake
def outputs(q, k, v, w_q, w_k, normalize, eps):
    return torch.empty_like(v), v.new_empty(v.shape[:3] if normalize else 0, dtype=torch.float32)


@torch.library.custom_op("mad::hedgehog_attention_backward", mutates_args=())
def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w_q: torch.Tensor, w_k: torch.Tensor, y: torch.Tensor,
    inverse: torch.Tensor, dy: torch.Tensor, normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """dq, dk, dv, and those of w_q and w_k together, (2, H, d, f), in fp32."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    return dq, dk, dv, fused.backward(q, k, v, w_q, w_k, y, inverse, dy, dq, dk, dv, normalize)


@gradients.register_fake
def _(q, k, v, w_q, w_k, y, inverse, dy, normalize):
    dw = q.new_empty(2, *w_q.shape, dtype=torch.float32)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dw


def keep(ctx, inputs, output):
    *tensors, ctx.normalize, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def backward(ctx, dy, _):
    _, _, _, w_q, w_k, *_ = ctx.saved_tensors
    dq, dk, dv, dw = gradients(*ctx.saved_tensors, unit_stride(dy), ctx.normalize)
    return dq, dk, dv, dw[0].to(w_q.dtype), dw[1].to(w_k.dtype), None, None


attend.register_autograd(backward, setup_context=keep)


def hedgehog_attention(q, k, v, w_q, w_k, *, window, mix, normalize: bool, eps: float) -> torch.Tensor:
    """See kernels.hedgehog_attention."""
    if window is None and fused.fits(q, v, w_q):
        q, k, v = (unit_stride(t.to(v.dtype)) for t in (q, k, v))
        return attend(q, k, v, w_q.contiguous(), w_k.contiguous(), normalize, eps)[0]
    q, k, v = (t.to(v.dtype).contiguous() for t in (q, k, v))
    phi_q, phi_k = (features(x, w.to(x.dtype).contiguous()) for x, w in ((q, w_q), (k, w_k)))
    if window is None and q.shape[2] > 4 * phi_q.shape[3]:
        return linear.linear_attention(
            phi_q, phi_k, v, decay=None, normalize=normalize, eps=eps, initial_state=None, return_state=False
        )
    weights = q.new_ones(2, q.shape[1], dtype=torch.float32) if mix is None else torch.stack([m.float() for m in mix])
    return pairs(q, k, v, phi_q, phi_k, weights, min(window or 0, q.shape[2]), normalize, eps)[0]
