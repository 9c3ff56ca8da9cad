"""Linear attention in plain torch: masked scores for short sequences, chunk by chunk with a state for long ones.

With decay always chunk by chunk. Only sums of log-decays over the tokens between two are exponentiated, never a
difference of running sums, and none that runs backwards: exponents are at most 0, so a strong decay gives 0 at worst.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from kernels.checks import as_given, wide

CHUNK = 64
CHANNEL_CHUNK = 16  # with a decay a channel: its scores within a chunk are sums of CHUNK F exponentials a token

Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # q (..., T, d), k (..., S, d) -> (..., T, S)
Features = Callable[[torch.Tensor], torch.Tensor]  # (..., d) -> (..., F) with features(q).features(k) = scores


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    decay: torch.Tensor | None = None,
    normalize: bool,
    eps: float,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """See kernels.linear_attention."""
    if decay is None and initial_state is None and not return_state:
        return causal(q, k, v, inner_products, lambda x: x, q.shape[-1], normalize=normalize, eps=eps)
    dtype = v.dtype
    with as_given(v):
        v = wide(v)
        q, k = q.to(v.dtype), k.to(v.dtype)
        v = F.pad(v, (0, 1), value=1.0) if normalize else v
        shape = (*k.shape[:2], k.shape[3], v.shape[3])
        state = v.new_zeros(shape) if initial_state is None else initial_state.to(v.dtype)
        if decay is None:
            y = pairs_or_chunks(q, k, v, inner_products, lambda x: x, q.shape[-1]) + q @ state
            state = state + k.transpose(-1, -2) @ v
        else:
            y, state = decayed(q, k, v, wide(decay).to(v.dtype), state)
        y = normalized(y, eps).to(dtype) if normalize else y.to(dtype)
    return (y, state) if return_state else y


def causal(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scores: Scores,
    features: Features,
    num_features: int,
    *,
    normalize: bool,
    eps: float,
) -> torch.Tensor:
    """Attention whose weights are `scores(q, k)`, which are inner products of `features`."""
    dtype = v.dtype
    with as_given(v):
        v = wide(v)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if normalize:  # the sum of the weights is one more column of values
            v = F.pad(v, (0, 1), value=1.0)
        y = pairs_or_chunks(q, k, v, scores, features, num_features)
        return (normalized(y, eps) if normalize else y).to(dtype)


def normalized(y: torch.Tensor, eps: float) -> torch.Tensor:
    """(..., dv + 1), the sum of the weights last -> (..., dv)."""
    return y[..., :-1] / (y[..., -1:] + eps)


def pairs_or_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores, features: Features, num_features: int
) -> torch.Tensor:
    """Scores of all pairs cost T (d + dv) a token, a state 2 F dv: below a length of about twice the features the pairs
    are cheaper, and no feature is ever formed."""
    if q.shape[2] <= max(2 * num_features, 2 * CHUNK):
        return scores(q, k).tril() @ v
    return by_chunks(q, k, v, scores, features)


def by_chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores, features: Features) -> torch.Tensor:
    """Within a chunk by scores, from the chunks before it by the running sum of features(k)^T v."""
    q, k, v, length = *(chunked(t, CHUNK) for t in (q, k, v)), q.shape[2]  # (B, H, n, C, .)
    added = features(k).transpose(-1, -2) @ v  # (B, H, n, F, dv); padding has v = 0
    before = F.pad(added.cumsum(2)[:, :, :-1], (0, 0, 0, 0, 1, 0))
    y = scores(q, k).tril() @ v + features(q) @ before
    return y.flatten(2, 3)[:, :, :length]


def chunked(x: torch.Tensor, size: int) -> torch.Tensor:
    """(B, H, T, d) -> (B, H, n, size, d), padded with zeros: tokens that add nothing and do not decay."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def inner_products(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-1, -2)


def decayed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (B, H, T, dv) and the state after the last token; decay (B, H, T) or (B, H, T, F)."""
    length, a_channel = q.shape[2], decay.dim() == 4
    size = CHANNEL_CHUNK if a_channel else CHUNK
    g = decay if a_channel else decay.unsqueeze(-1)  # (B, H, T, F or 1)
    q, k, v, g = (chunked(t, size) for t in (q, k, v, g))  # (B, H, n, C, .); padding does not decay
    lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril().unsqueeze(-1)  # (C, C, 1)
    # log of the decay from s to t: the sum over s < u <= t. (B, H, n, C, C, F or 1)
    weights = segments(g).masked_fill(~lower, -torch.inf).exp()
    if a_channel:
        scores = torch.einsum("bhntf,bhnsf,bhntsf->bhnts", q, k, weights)
    else:
        scores = q @ k.transpose(-1, -2) * weights.squeeze(-1)
    since_start = g.cumsum(3).exp()  # S before the chunk, at t
    to_end = F.pad(g[:, :, :, 1:], (0, 0, 0, 1)).flip(3).cumsum(3).flip(3).exp()  # s, at the end of the chunk
    y, q = scores @ v, q * since_start
    added = (k * to_end).transpose(-1, -2) @ v  # (B, H, n, F, dv)
    through = since_start[:, :, :, -1].unsqueeze(-1)  # (B, H, n, F or 1, 1)
    before = []
    for c in range(q.shape[2]):
        before.append(state)
        state = through[:, :, c] * state + added[:, :, c]
    y = y + q @ torch.stack(before, 2) if before else y
    return y.flatten(2, 3)[:, :, :length], state


def segments(g: torch.Tensor) -> torch.Tensor:
    """(..., C, f) -> (..., C, C, f): the sum over s < u <= t, without a subtraction, in which strong decays would
    swallow weak ones."""
    size = g.shape[-2]
    strictly = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1).unsqueeze(-1)  # (t, s, 1)
    return torch.where(strictly, g.unsqueeze(-2), 0.0).cumsum(-3)
