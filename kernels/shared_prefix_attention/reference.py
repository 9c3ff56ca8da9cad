"""Shared-prefix attention in plain torch: each level's attention with its log-sum-exp, then their weighted mean."""

import torch

from kernels.checks import as_given, wide


def shared_prefix_attention(q, prefixes, suffix_k, suffix_v, suffix_lengths) -> torch.Tensor:
    """See kernels.shared_prefix_attention; every level is (k, v, lengths or None)."""
    with as_given(q):
        parts = [level(q, *prefix) for prefix in prefixes]
        parts.append(level(q, suffix_k, suffix_v, suffix_lengths))
        outputs, lse = (torch.stack(t) for t in zip(*parts, strict=True))  # (levels, B, n, Hq, d), (levels, B, n, Hq)
        highest = lse.amax(0)
        weight = torch.exp(lse - torch.where(highest == -torch.inf, 0.0, highest))
        total = weight.sum(0)
        y = (weight.unsqueeze(-1) * outputs).sum(0) / torch.where(total > 0, total, 1.0).unsqueeze(-1)
    return y.to(q.dtype)


def level(q, k, v, lengths) -> tuple[torch.Tensor, torch.Tensor]:
    """q (B, n, Hq, d) over k, v (S, P, Hkv, d) -> (B, n, Hq, d) and log-sum-exp (B, n, Hq), -inf over no keys."""
    shared, size, heads, d = k.shape
    rows = wide(q).unflatten(0, (shared, -1)).unflatten(3, (heads, -1))  # (S, B / S, n, Hkv, G, d)
    there = None if lengths is None else torch.arange(size, device=q.device) < lengths.view(-1, 1)  # (S, P)
    if there is not None:  # unused slots may be anything, NaN too
        k, v = (torch.where(there.view(shared, size, 1, 1), t, 0.0) for t in (k, v))
    scores = torch.einsum("sbnhgd,sphd->sbnhgp", rows, k.to(rows.dtype)) * d**-0.5
    if there is not None:
        scores = scores.masked_fill(~there.view(shared, 1, 1, 1, 1, size), -torch.inf)
    if size == 0:
        nothing = torch.zeros_like(wide(q)) + (k.sum() + v.sum() + q[:0].sum())  # so that all have a gradient
        return nothing, torch.full_like(nothing[..., 0], -torch.inf)
    highest = scores.detach().amax(-1, keepdim=True)
    weight = torch.exp(scores - torch.where(highest == -torch.inf, 0.0, highest))
    total = weight.sum(-1)
    some = torch.where(total > 0, total, 1.0)
    y = torch.einsum("sbnhgp,sphd->sbnhgd", weight / some.unsqueeze(-1), v.to(rows.dtype))
    lse = torch.where(total > 0, torch.log(some) + highest.squeeze(-1), -torch.inf)
    return y.flatten(3, 4).flatten(0, 1), lse.flatten(3, 4).flatten(0, 1)
