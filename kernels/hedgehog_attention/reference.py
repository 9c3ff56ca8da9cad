"""Hedgehog attention in plain torch: without a window linear attention over features, with one all pairs' weights."""

import torch

from kernels.checks import as_given, wide
from kernels.linear_attention import reference as linear


def hedgehog_attention(q, k, v, w_q, w_k, *, window, mix, normalize: bool, eps: float) -> torch.Tensor:
    """See kernels.hedgehog_attention."""
    dtype = v.dtype
    with as_given(v):
        v = wide(v)
        q, k, w_q, w_k = (t.to(v.dtype) for t in (q, k, w_q, w_k))
        phi_q, phi_k = features(q, w_q), features(k, w_k)
        if window is None:
            return linear.linear_attention(phi_q, phi_k, v, normalize=normalize, eps=eps).to(dtype)
        if not v.numel():
            return (v + sum(t.sum() for t in (phi_q, phi_k, *(mix or ())))).to(dtype)
        t = torch.arange(q.shape[2], device=q.device)
        causal = t[None, :] <= t[:, None]
        near = causal & (t[None, :] > t[:, None] - window)
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~near, -torch.inf)
        a, b = (1.0, 1.0) if mix is None else (m.to(v.dtype).view(-1, 1, 1) for m in mix)
        exact = a * torch.exp(scores - scores.detach().amax(-1, keepdim=True))
        weight = torch.where(near, exact, b * (phi_q @ phi_k.transpose(-1, -2))).masked_fill(~causal, 0.0)
        y = weight @ v
        if normalize:
            y = y / (weight.sum(-1, keepdim=True) + eps)
    return y.to(dtype)


def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, d), w (H, d, f) -> (B, H, T, 2 f)."""
    y = x @ w
    return torch.cat([y.softmax(-1), (-y).softmax(-1)], dim=-1)
