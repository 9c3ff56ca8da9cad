"""Linear attention in plain torch: masked scores for short sequences, chunk by chunk with a state for long ones."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

CHUNK = 64

Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # q (..., T, d), k (..., S, d) -> (..., T, S)
Features = Callable[[torch.Tensor], torch.Tensor]  # (..., d) -> (..., F) with features(q).features(k) = scores


def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, normalize: bool, eps: float) -> torch.Tensor:
    """See kernels.linear_attention."""
    return causal(q, k, v, inner_products, lambda x: x, q.shape[-1], normalize=normalize, eps=eps)


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
    """Attention whose weights are `scores(q, k)`, which are inner products of `features`.

    Scores of all pairs cost T (d + dv) a token, a state 2 F dv: below a length of about twice the features the pairs
    are cheaper, and no feature is ever formed.
    """
    dtype, length = v.dtype, v.shape[2]
    with torch.autocast(v.device.type, enabled=False):
        q, k, v = (t if t.dtype == torch.float64 else t.float() for t in (q, k, v))
        if normalize:  # the sum of the weights is one more column of values
            v = F.pad(v, (0, 1), value=1.0)
        if length <= max(2 * num_features, 2 * CHUNK):
            y = scores(q, k).tril() @ v
        else:
            y = by_chunks(q, k, v, scores, features)
        if normalize:
            y = y[..., :-1] / (y[..., -1:] + eps)
    return y.to(dtype)


def by_chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores, features: Features) -> torch.Tensor:
    """Within a chunk by scores, from the chunks before it by the running sum of features(k)^T v."""
    length = q.shape[2]
    pad = -length % CHUNK
    q, k, v = (F.pad(t, (0, 0, 0, pad)).unflatten(2, (-1, CHUNK)) for t in (q, k, v))  # (B, H, n, C, .)
    added = features(k).transpose(-1, -2) @ v  # (B, H, n, F, dv); padding has v = 0
    before = F.pad(added.cumsum(2)[:, :, :-1], (0, 0, 0, 0, 1, 0))
    y = scores(q, k).tril() @ v + features(q) @ before
    return y.flatten(2, 3)[:, :, :length]


def inner_products(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-1, -2)
