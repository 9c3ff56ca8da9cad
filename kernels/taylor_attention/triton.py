"""Taylor attention in Triton, no feature in memory: the operator. Its kernels: `chunks.py` forward and `spans.py`
backward in half precision, `sums.py` for what these do not take.

With x = q.k / sqrt(d), w = 1 + x + x^2 / 2 and g = dy / (eps + sum of weights):

    y = sum w v        dv = sum w g        dq = sum (g.v + delta) (1 + x) k / sqrt(d)      dk likewise with q

where delta = -g.y is the gradient of the sum of the weights.
"""

import torch

from kernels.linear_attention.sums import sum_gradient
from kernels.taylor_attention import chunks, spans, sums
from kernels.tiles import operator, unit_stride


@operator("mad::taylor_attention")
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, normalize: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and where normalised 1 / (eps + the sum of weights) in fp32, else empty."""
    y, inverse = outputs(q, k, v, normalize, eps)
    (chunks if chunks.fits(q) else sums).forward(q, k, v, y, inverse, normalize, eps)
    return y, inverse


@attend.register_fake
def outputs(q, k, v, normalize, eps):
    return torch.empty_like(v), v.new_empty(v.shape[:3] if normalize else 0, dtype=torch.float32)


@operator("mad::taylor_attention_backward")
def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, y: torch.Tensor, inverse: torch.Tensor, dy: torch.Tensor,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    delta = sum_gradient(dy, y, normalize)
    by = spans if spans.fits(q, k, v, dy, normalize) else sums
    return by.backward(q, k, v, inverse, delta, dy, normalize)


@gradients.register_fake
def _(q, k, v, y, inverse, dy, normalize):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def keep(ctx, inputs, output):
    q, k, v, ctx.normalize, _ = inputs
    y, inverse = output
    ctx.mark_non_differentiable(inverse)
    ctx.save_for_backward(q, k, v, y, inverse)


def backward(ctx, dy, _):
    return *gradients(*ctx.saved_tensors, unit_stride(dy), ctx.normalize), None, None


attend.register_autograd(backward, setup_context=keep)


def taylor_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, normalize: bool, eps: float) -> torch.Tensor:
    """See kernels.taylor_attention."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    y, _ = attend(*(unit_stride(t.to(dtype)) for t in (q, k, v)), bool(normalize), eps)
    return y.to(v.dtype)
