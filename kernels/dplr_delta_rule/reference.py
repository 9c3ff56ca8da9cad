"""The delta rule with a diagonal-plus-low-rank transition in plain torch, chunk by chunk.

Write u[t] = S[t-1]^T a[t], what token t reads, and w[t, s] for the decay over the tokens after s up to t, a channel.
Within a chunk that starts from S, with w[t] the decay since its start,

    S[t] = w[t] S + sum_{s <= t} w[t, s] (b[s] u[s]^T + k[s] v[s]^T),
    u[t] = (w[t-1] a[t])^T S + sum_{s < t} (a[t].w[t-1, s] b[s]) u[s] + (a[t].w[t-1, s] k[s]) v[s],

a unit lower triangular system for all u of the chunk at once. Its left side does not depend on S, so all chunks are
solved together, for what they read of their own values and of S; only the state is carried through a loop. A loop over
tokens would keep T states for the backward pass; this keeps T / CHUNK, and CHUNK exponentials a token and channel.

Only sums of log-decays are exponentiated, never a difference of running sums: exponents are at most 0.
"""

from typing import Any

import torch
import torch.nn.functional as F

from kernels.checks import as_given, wide
from kernels.linear_attention.reference import chunked, segments

CHUNK = 8  # of 4 to 32 the fastest on a CPU


def dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """See kernels.dplr_delta_rule."""
    dtype, length = v.dtype, q.shape[2]
    with as_given(v):
        v = wide(v)
        q, k, a, b, g = (t.to(v.dtype) for t in (q, k, a, b, decay))
        shape = (*k.shape[:2], k.shape[3], v.shape[3])
        state = v.new_zeros(shape) if initial_state is None else initial_state.to(v.dtype)
        size = min(CHUNK, max(1, length))
        q, k, v, a, b, g = (chunked(t, size) for t in (q, k, v, a, b, g))
        y, state = by_chunks(q, k, v, a, b, g, state)
        y = y.flatten(2, 3)[:, :, :length].to(dtype)
    return (y, state) if return_state else y


def by_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor, g: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """y (B, H, n, C, dv) and the last state, from chunks (B, H, n, C, .): padding adds nothing and does not decay."""
    size = q.shape[3]
    lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril().unsqueeze(-1)  # (t, s, 1)
    weights = segments(g).masked_fill(~lower, -torch.inf).exp()  # w[t, s], 0 for s > t: (B, H, n, C, C, d)
    since_start = g.cumsum(-2).exp()  # (B, H, n, C, d)
    since_before = F.pad(g[..., :-1, :], (0, 0, 1, 0)).cumsum(-2).exp()  # what is read at t has not decayed at t
    to_end = weights[..., -1, :, :]  # (B, H, n, C, d)

    weighted = weights.unsqueeze(-3) * torch.stack([b, k], -3).unsqueeze(-4)  # (B, H, n, t, 2, s, d)
    readers = torch.stack([q, F.pad(a[..., 1:, :], (0, 0, 0, 1))], -1)  # q[t], a[t+1]: (B, H, n, t, d, 2)
    scores = (weighted.flatten(-3, -2) @ readers).unflatten(-2, (2, size))  # (B, H, n, t, 2, s, 2)
    (y_u, y_v), (next_u, next_v) = (x.unbind(-2) for x in scores.unbind(-1))  # (B, H, n, t, s) each
    u_u, u_v = (F.pad(x[..., :-1, :], (0, 0, 1, 0)) for x in (next_u, next_v))

    sides = torch.cat([u_v @ v, since_before * a], dim=-1)
    own, read = torch.linalg.solve_triangular(-u_u, sides, upper=False, unitriangular=True).split(
        [v.shape[-1], k.shape[-1]], dim=-1
    )
    y, queries = y_v @ v, since_start * q
    through = since_start[..., -1, :].unsqueeze(-1)  # (B, H, n, d, 1)
    added, written = (to_end * k).mT @ v, (to_end * b).mT

    # unbound, not indexed: the gradient of an index is a tensor of zeros as large as the whole
    chunks = zip(*(x.unbind(2) for x in (own, read, y, queries, y_u, through, added, written)), strict=True)
    outputs = []
    for own_c, read_c, y_c, queries_c, scores_c, through_c, added_c, written_c in chunks:
        u = own_c + read_c @ state  # (B, H, C, dv)
        outputs.append(y_c + queries_c @ state + scores_c @ u)
        state = through_c * state + added_c + written_c @ u
    return (torch.stack(outputs, 2) if outputs else y), state  # without tokens y is empty, and depends on all
