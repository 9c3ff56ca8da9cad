"""The delta rule in plain torch: the chunkwise form of arXiv 2406.06484 (section 3), with the decay of 2412.06464.

Write u[t] = beta[t] (v[t] - S'^T k[t]), what token t adds: S[t] = S' + k[t] u[t]^T. Within a chunk that starts from S,
with w[t, s] the decay over the tokens after s up to t, and w[t] that since the start,

    u[t] = beta[t] (v[t] - w[t] S^T k[t] - sum_{s < t} w[t, s] (k[t].k[s]) u[s]),

a unit lower triangular system for all u of the chunk at once. Its left side does not depend on S, so all chunks are
solved together, for beta v and beta w k; only the state is carried through a loop.

Only sums of log-decays are exponentiated, never a difference of running sums: exponents are at most 0.
"""

from typing import Any

import torch

from kernels.checks import as_given, wide
from kernels.linear_attention.reference import chunked

CHUNK = 64


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """See kernels.delta_rule."""
    dtype, length = v.dtype, q.shape[2]
    with as_given(v):
        v = wide(v)
        q, k, beta = (t.to(v.dtype) for t in (q, k, beta))
        decay = torch.zeros_like(beta) if decay is None else decay.to(v.dtype)
        shape = (*k.shape[:2], k.shape[3], v.shape[3])
        state = v.new_zeros(shape) if initial_state is None else initial_state.to(v.dtype)
        size = min(CHUNK, max(1, length))
        q, k, v, beta, g = (chunked(t, size) for t in (q, k, v, beta.unsqueeze(-1), decay.unsqueeze(-1)))
        y, state = by_chunks(q, k, v, beta, g, state)
        y = y.flatten(2, 3)[:, :, :length].to(dtype)
    return (y, state) if return_state else y


def by_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, g: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (B, H, n, C, dv) and the last state, from chunks (B, H, n, C, .) of which beta and g are one wide."""
    size = q.shape[3]
    lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    strictly = lower.tril(-1)
    between = torch.where(strictly, g, 0.0).cumsum(-2)  # (B, H, n, C, C): at [t, s] the sum over s < u <= t
    weights = between.masked_fill(~lower, -torch.inf).exp()
    since_start = g.cumsum(-2).exp()  # (B, H, n, C, 1)
    to_end = weights[..., -1, :].unsqueeze(-1)  # (B, H, n, C, 1)
    through = since_start[..., -1:, :]  # (B, H, n, 1, 1)

    system = beta * weights * (k @ k.mT)  # the solver reads its strictly lower part
    sides = torch.cat([beta * v, beta * since_start * k], dim=-1)
    own, read = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True).split(
        [v.shape[-1], k.shape[-1]], dim=-1
    )
    scores = weights * (q @ k.mT)
    queries, keys = since_start * q, (to_end * k).mT

    outputs = []
    for c in range(q.shape[2]):
        u = own[:, :, c] - read[:, :, c] @ state  # (B, H, C, dv)
        outputs.append(queries[:, :, c] @ state + scores[:, :, c] @ u)
        state = through[:, :, c] * state + keys[:, :, c] @ u
    # without tokens nothing, on which all depend: gradients of zeros, not none
    return (torch.stack(outputs, 2) if outputs else own + scores.sum()), state
