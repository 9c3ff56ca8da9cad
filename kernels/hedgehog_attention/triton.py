"""Hedgehog attention in Triton: the operators, and which kernels run.

Without a window `fused`, for narrow heads of many or short sequences, and in bf16 `wide` form features within the
attention. Else `features` writes them, and with a window, or up to four times as many tokens as features, `windowed`
reads them, block by block; beyond, linear attention. With a window a state stands for what is older, so its cost is
linear in the tokens too.
"""

from typing import Any

import torch

from kernels.hedgehog_attention import fused, wide, windowed
from kernels.hedgehog_attention.features import features
from kernels.linear_attention import triton as linear
from kernels.tiles import operator, unit_stride


@operator("mad::hedgehog_pairs")
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
    """y, 1 / (eps + the sum of weights) where normalised and the windows' largest exponents where there are windows,
    else empty. mix (2, H) fp32; window 0: none."""
    y, inverse, highest = pair_outputs(q, k, v, phi_q, phi_k, mix, window, normalize, eps)
    windowed.forward(q, k, v, phi_q, phi_k, mix, y, inverse, highest, window, normalize, eps)
    return y, inverse, highest


@pairs.register_fake
def pair_outputs(q, k, v, phi_q, phi_k, mix, window, normalize, eps):
    sizes = (q.shape[:3] if kept else 0 for kept in (normalize, window))
    return torch.empty_like(v), *(q.new_empty(size, dtype=torch.float32) for size in sizes)


@operator("mad::hedgehog_pairs_backward")
def pairs_backward(
    dy: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    phi_q: torch.Tensor,
    phi_k: torch.Tensor,
    mix: torch.Tensor,
    y: torch.Tensor,
    inverse: torch.Tensor,
    highest: torch.Tensor,
    window: int,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.empty if window else torch.zeros  # without a window q and k are not looked at
    dq, dk = (made(t.shape, dtype=t.dtype, device=t.device) for t in (q, k))
    dv, d_phi_q, d_phi_k = torch.empty_like(v), torch.empty_like(phi_q), torch.empty_like(phi_k)
    d_mix = windowed.backward(
        q, k, v, phi_q, phi_k, mix, y, inverse, highest, dy, dq, dk, dv, d_phi_q, d_phi_k, window, normalize
    )
    return dq, dk, dv, d_phi_q, d_phi_k, d_mix


@pairs_backward.register_fake
def _(dy, q, k, v, phi_q, phi_k, mix, y, inverse, highest, window, normalize):
    return tuple(torch.empty_like(t) for t in (q, k, v, phi_q, phi_k, mix))


def save(ctx, inputs, output):
    *tensors, ctx.window, ctx.normalize, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output)


def differentiate(ctx, dy, *_):
    gradients = pairs_backward(dy.contiguous(), *ctx.saved_tensors, ctx.window, ctx.normalize)
    return *gradients, None, None, None


pairs.register_autograd(differentiate, setup_context=save)


def forming(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> Any:  # a module
    """The kernels that form features within the attention of such tensors, or None."""
    return next((module for module in (fused, wide) if module.fits(q, v, w)), None)


@operator("mad::hedgehog_attention")
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w_q: torch.Tensor, w_k: torch.Tensor, normalize: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and where normalised 1 / (eps + the sum of weights) in fp32, else empty. No feature in memory."""
    y, inverse = outputs(q, k, v, w_q, w_k, normalize, eps)
    forming(q, v, w_q).forward(q, k, v, w_q, w_k, y, inverse, normalize, eps)
    return y, inverse


@attend.register_fake
def outputs(q, k, v, w_q, w_k, normalize, eps):
    return torch.empty_like(v), v.new_empty(v.shape[:3] if normalize else 0, dtype=torch.float32)


@operator("mad::hedgehog_attention_backward")
def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w_q: torch.Tensor, w_k: torch.Tensor, y: torch.Tensor,
    inverse: torch.Tensor, dy: torch.Tensor, normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """dq, dk, dv, and those of w_q and w_k together, (2, H, d, f), in fp32."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    return dq, dk, dv, forming(q, v, w_q).backward(q, k, v, w_q, w_k, y, inverse, dy, dq, dk, dv, normalize)


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
    q, k = q.to(v.dtype), k.to(v.dtype)
    kernels = forming(q, v, w_q) if window is None else None
    if kernels is not None:
        tensors = [unit_stride(t) for t in (q, k, v)] + [w_q.contiguous(), w_k.contiguous()]
        if kernels is wide:
            tensors = [padded(t, -2 if t.dim() == 3 else -1) for t in tensors]
        return attend(*tensors, normalize, eps)[0][..., : v.shape[3]]
    q, k, v = (t.contiguous() for t in (q, k, v))
    phi_q, phi_k = (features(x, w.to(x.dtype).contiguous()) for x, w in ((q, w_q), (k, w_k)))
    if window is None and q.shape[2] > 4 * phi_q.shape[3]:
        return linear.linear_attention(
            phi_q, phi_k, v, decay=None, normalize=normalize, eps=eps, initial_state=None, return_state=False
        )
    weights = q.new_ones(2, q.shape[1], dtype=torch.float32) if mix is None else torch.stack([m.float() for m in mix])
    return pairs(q, k, v, phi_q, phi_k, weights, min(window or 0, q.shape[2]), normalize, eps)[0]


def padded(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Heads' width with zeros up to a multiple of 16, for rows that can be read in words of 16 bytes."""
    missing = -t.shape[dim] % 16
    return torch.nn.functional.pad(t, (0, 0) * (-1 - dim) + (0, missing)) if missing else t
