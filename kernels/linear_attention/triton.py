"""Linear attention in Triton: the operator and its gradients. The kernels, and their numerics: `sums.py`."""
# pyright: reportOptionalOperand=false

from typing import Any

import torch

from kernels.linear_attention.sums import add_up, scan, sum_gradient
from kernels.tiles import operator, unit_stride


@operator("mad::linear_attention")
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor | None, initial: torch.Tensor | None,
    normalize: bool, eps: float, keep_state: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """y, 1 / (eps + sum of weights) where normalised, the last state where kept; else empty."""
    y, inverse, state = outputs(q, k, v, decay, initial, normalize, eps, keep_state)
    last = state if keep_state else None
    found = scan(k, v, decay, inverse, inverse, initial, last, normalize, False)
    add_up("y", q, k, v, v, y, decay, inverse, inverse, found, normalize, eps)
    return y, inverse, state


@attend.register_fake
def outputs(q, k, v, decay, initial, normalize, eps, keep_state):
    batch, heads, length, features = q.shape
    inverse = v.new_empty((batch, heads, length) if normalize else 0, dtype=torch.float32)
    state = (batch, heads, features, v.shape[3] + normalize) if keep_state else 0
    return torch.empty_like(v), inverse, v.new_empty(state, dtype=torch.float32)


@operator("mad::linear_attention_backward")
def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor | None, initial: torch.Tensor | None,
    y: torch.Tensor, inverse: torch.Tensor, state: torch.Tensor, dy: torch.Tensor, dstate: torch.Tensor | None,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """dq, dk, dv, the decay's in fp32 and the initial state's; the last two empty where there is none."""
    delta = sum_gradient(dy, y, normalize)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    dinitial = v.new_empty(0, dtype=torch.float32) if initial is None else torch.empty_like(initial)
    last = None if initial is None else dinitial
    before = scan(k, v, decay, inverse, delta, initial, None, normalize, False)
    q_dq = add_up("dq", dy, v, k, q, dq, decay, inverse, delta, before, normalize)
    del before
    after = scan(q, dy, decay, inverse, delta, dstate, last, normalize, True)
    k_dk = add_up("dk", v, dy, q, k, dk, decay, inverse, delta, after, normalize)
    add_up("dv", k, q, dy, v, dv, decay, inverse, delta, after, normalize)
    if decay is None:
        return dq, dk, dv, v.new_empty(0, dtype=torch.float32), dinitial
    ddecay = (q_dq - k_dk).flip(2).cumsum(2).flip(2)
    if dstate is not None:  # the last state, as one more token that reads it
        ddecay += (state * dstate).sum((2, 3) if decay.dim() == 3 else 3).unsqueeze(2)
    return dq, dk, dv, ddecay, dinitial


@gradients.register_fake
def _(q, k, v, decay, initial, y, inverse, state, dy, dstate, normalize):
    none = v.new_empty(0, dtype=torch.float32)
    ddecay = none if decay is None else decay.new_empty(decay.shape, dtype=torch.float32)
    dinitial = none.clone() if initial is None else torch.empty_like(initial)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), ddecay, dinitial


def keep(ctx, inputs, output):
    q, k, v, decay, initial, ctx.normalize, _, ctx.keep_state = inputs
    y, inverse, state = output
    ctx.mark_non_differentiable(inverse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, decay, initial, y, inverse, state)


def backward(ctx, dy, _, dstate):
    q, k, v, decay, initial, y, inverse, state = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else unit_stride(dy)
    dstate = dstate.contiguous() if ctx.keep_state and dstate is not None else None
    dq, dk, dv, ddecay, dinitial = gradients(q, k, v, decay, initial, y, inverse, state, dy, dstate, ctx.normalize)
    ddecay = None if decay is None else ddecay.to(decay.dtype)
    return dq, dk, dv, ddecay, None if initial is None else dinitial, None, None, None


attend.register_autograd(backward, setup_context=keep)


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    decay: torch.Tensor | None,
    normalize: bool,
    eps: float,
    initial_state: torch.Tensor | None,
    return_state: bool,
) -> Any:
    """See kernels.linear_attention."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    a, b, c = (unit_stride(t.to(dtype)) for t in (q, k, v))
    if decay is not None and decay.dim() == 4:
        decay = unit_stride(decay)
    initial = None if initial_state is None else initial_state.float().contiguous()
    y, _, state = attend(a, b, c, decay, initial, bool(normalize), eps, return_state)
    return (y.to(v.dtype), state) if return_state else y.to(v.dtype)
