"""The selective scan in plain torch: about 3 sqrt(L) steps, each over all sequences, channels and states.

The sequence is cut into blocks of about sqrt(L) tokens. All blocks are scanned side by side, one token a step: from a
state of zero first, which tells what a block adds to a state; then the state is carried from block to block; then from
those states, for the outputs. Exponents are sums of dt a, never differences, so a strong decay gives 0 and nothing is
divided.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

from kernels.checks import as_given, wide


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """See kernels.selective_scan."""
    dtype = u.dtype
    with as_given(u):
        u = wide(u)
        dt, a, b, c = (x.to(u.dtype) for x in (dt, a, b, c))
        if initial_state is None:
            state = u.new_zeros(*u.shape[:2], a.shape[1])
        else:
            state = initial_state.to(u.dtype)
        y, state = scan(dt, dt * u, a, b, c, state)
        if skip is not None:
            y = y + skip.to(u.dtype).unsqueeze(-1) * u
        if gate is not None:
            y = y * F.silu(gate.to(u.dtype))
        y = y.to(dtype)
    return (y, state) if return_state else y


def scan(
    dt: torch.Tensor, u: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dt, u = dt u (B, D, L), b, c (B, N, L), state (B, D, N) -> sum over n of c h, (B, D, L), and the last state."""
    length = dt.shape[-1]
    if not length:
        return dt * u + a.sum() + b.sum() + c.sum(), state  # empty; all have gradients, zeros
    size = math.isqrt(length)
    # a token of every block: (size, B, D, 1, m) and (size, B, 1, N, m); padding has dt = 0, so it keeps the state
    dt, u = (blocks(x, size).unsqueeze(3) for x in (dt, u))
    b, c = (blocks(x, size).unsqueeze(2) for x in (b, c))
    a = a.unsqueeze(-1)  # (D, N, 1)
    decays = [(dt[i] * a).exp() for i in range(size)]  # (B, D, N, m) each
    inputs = [u[i] * b[i] for i in range(size)]

    added = inputs[0]
    for i in range(1, size):
        added = torch.addcmul(inputs[i], decays[i], added)
    through = (dt.sum(0) * a).exp()  # a block's decay
    starts = []
    for m in range(dt.shape[-1]):
        starts.append(state)
        state = torch.addcmul(added[..., m], through[..., m], state)

    h = torch.stack(starts, -1)
    outputs = []
    for i in range(size):
        h = torch.addcmul(inputs[i], decays[i], h)
        outputs.append((c[i] * h).sum(2))  # (B, D, m)
    return torch.stack(outputs, -1).flatten(2)[..., :length], state


def blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """(B, ., L) -> (size, B, ., m), padded with zeros."""
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).movedim(-1, 0).contiguous()
