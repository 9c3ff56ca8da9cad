"""Gated linear attention: a linear attention whose state forgets, channel by channel, as the token says."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import Layer, above_zero, positive, split_heads
from layers.norm import WideRMSNorm


@layers.register("gla", kind="sequence")
class GatedLinearAttention(Layer):
    """S[t] = diag(a[t]) S[t-1] + k[t] v[t]^T, y = W_o (norm(S[t]^T q[t] / sqrt(d)) * silu(W_g x)), a head.

    Yang et al. 2023 (arXiv 2312.06635): a = sigmoid(W_2 W_1 x + bias)^(1/temperature) from a map of rank 16, an RMS
    norm over each head. Defaults of the MAD protocol: one head, keys as wide as values. State, with keys of
    K = expand_k dim: dim K / num_heads. FLOPs a token: 6 dim^2 + 4 dim K + 2 rank (dim + K) + 5 dim K / num_heads.

    Args:
        expand_k: width of queries and keys, in units of dim.
        rank: of the map to the decays.
        temperature: the higher, the more slowly everything is forgotten.
    """

    countable = False  # its two algorithms cost differently; `flops` is the recurrence's

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        num_heads: int = 1,
        expand_k: float = 1.0,
        rank: int = 16,
        temperature: float = 16.0,
    ):
        super().__init__(dim, max_length)
        self.num_heads, self.rank, self.temperature = num_heads, rank, temperature
        positive(rank=rank)
        above_zero(expand_k=expand_k, temperature=temperature)
        self.keys = round(expand_k * dim)
        if not self.keys:
            raise ValueError(f"expand_k={expand_k} leaves no key of dim={dim}; expected at least {1 / dim:.3g}")
        self.head_dim, self.key_dim = split_heads(dim, num_heads), split_heads(self.keys, num_heads, "expand_k dim")
        self.qkvg = nn.Linear(dim, 2 * self.keys + 2 * dim, bias=False)
        self.decay = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, self.keys))
        self.norm = WideRMSNorm(self.head_dim, eps=1e-5)
        self.out = nn.Linear(dim, dim, bias=False)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x (B, T, dim) -> q, k (B, H, T, key_dim), v, the gate (B, H, T, dv), and the logarithms of the decays (B, H,
        T, key_dim), at least fp32."""
        streams = self.qkvg(x).split([self.keys, self.keys, self.dim, self.dim], dim=-1)
        decay = F.logsigmoid(kernels.wide(self.decay(x))) / self.temperature
        parts = (s.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for s in (*streams, decay))
        q, k, v, gate, decay = parts
        return q * self.key_dim**-0.5, k, v, gate, decay

    def read(self, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """(B, H, T, d) -> (B, T, dim)."""
        return self.out((self.norm(y) * F.silu(gate)).transpose(1, 2).flatten(2).to(gate.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        q, k, v, gate, decay = self.heads(x)
        return self.read(kernels.linear_attention(q, k, v, decay=decay, normalize=False), gate)

    def init_state(self, batch: int) -> tuple[torch.Tensor]:
        """S (B, H, key_dim, dv)."""
        return (kernels.wide(self.zeros(batch, self.num_heads, self.key_dim, self.head_dim)),)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        q, k, v, gate, decay = self.heads(x_t.unsqueeze(1))  # one token
        total = decay.exp().transpose(2, 3) * state[0] + k.transpose(2, 3).to(state[0].dtype) * v
        return self.read(q.to(total.dtype) @ total, gate).squeeze(1), (total,)

    def state_size(self, length: int) -> int:
        return self.dim * self.key_dim

    def flops(self, length: int) -> int:
        maps = 6 * self.dim**2 + 4 * self.dim * self.keys + 2 * self.rank * (self.dim + self.keys)
        return length * (maps + 5 * self.dim * self.key_dim)


@layers.register("mh_gla", kind="sequence")
class MultiHeadGatedLinearAttention(GatedLinearAttention):
    """Gated linear attention with 8 heads, the MAD protocol's; the rest as in `gla`."""

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        num_heads: int = 8,
        expand_k: float = 1.0,
        rank: int = 16,
        temperature: float = 16.0,
    ):
        super().__init__(dim, max_length, num_heads=num_heads, expand_k=expand_k, rank=rank, temperature=temperature)
