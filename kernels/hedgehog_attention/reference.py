"""Hedgehog attention in plain torch: without a window linear attention over features, with one all pairs' weights."""

import torch

from kernels.checks import wide
from kernels.linear_attention import reference as linear


def hedgehog_attention(q, k, v, w_q, w_k, *, window, mix, normalize: bool, eps: float) -> torch.Tensor:
    """See kernels.hedgehog_attention."""
    with torch.autocast(v.device.type, enabled=False):
        phi_q, phi_k = features(wide(q), wide(w_q)), features(wide(k), wide(w_k))
        if window is None:
            return linear.linear_attention(phi_q, phi_k, wide(v), normalize=normalize, eps=eps).to(v.dtype)
        if not v.numel():
            return torch.zeros_like(v)
        t = torch.arange(q.shape[2], device=q.device)
        causal = t[None, :] <= t[:, None]
        near = causal & (t[None, :] > t[:, None] - window)
        scores = (wide(q) @ wide(k).transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~near, -torch.inf)
        a, b = (1.0, 1.0) if mix is None else (wide(m).view(-1, 1, 1) for m in mix)
        exact = a * torch.exp(scores - scores.detach().amax(-1, keepdim=True))
        weight = torch.where(near, exact, b * (phi_q @ phi_k.transpose(-1, -2))).masked_fill(~causal, 0.0)
        y = weight @ wide(v)
        if normalize:
            y = y / (weight.sum(-1, keepdim=True) + eps)
    return y.to(v.dtype)


def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, d), w (H, d, f) -> (B, H, T, 2 f)."""
    y = x @ w
    return torch.cat([y.softmax(-1), (-y).softmax(-1)], dim=-1)
