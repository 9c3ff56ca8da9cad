"""RWKV-7's time mixing: a state whose channels decay, and are overwritten, each at a rate of its own."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import Layer, positive, split_heads
from layers.token_shift import before, mixed, new_mix

SHIFTS = 0.2, 0.9, 0.7, 0.7, 0.9, 0.2  # of r, w, k, v, a, g: how fast the share of the token before falls over channels


@layers.register("rwkv7", kind="sequence")
class RWKV7(Layer):
    """S[t] = (diag(w) - (kappa * alpha) kappa^T) S[t-1] + k v^T, y = W_o (g * (norm(S^T r) + (r.(u * k)) v)), a head.

    Peng et al. 2025 (arXiv 2503.14456, section 4). The token before is mixed into x, x + mu * (x[t-1] - x), with a mu
    of its own for each of six maps: r = W_r x, k' = W_k x, v = W_v x, and of low rank log w = -exp(-1/2) sigmoid(w_0 +
    W_2 tanh(W_1 x)), alpha = sigmoid(a_0 + A_2 A_1 x), g = G_2 sigmoid(G_1 x). What is overwritten is found by kappa =
    c * k', of length 1 a head; what is written is k = k' * (1 + (alpha - 1) * d). The norm has means, a weight and a
    bias (a group norm), and eps = 1e-5 head_dim. Widths and ranks of Zoology's sweeps.

    Without the residual of the values, which mixes those of a model's first layer into the later ones': a layer here
    knows of no other. Initial values are those of the official code's first layer: W uniform within 0.5 / sqrt(dim),
    W_k a tenth of that, W_2, A_2, G_2 orthogonal times 0.1, W_1, A_1, G_1 zero, mu from 1 down to 0 over the channels,
    w_0 up from slow decays to fast. But W_o, there zero, is drawn as W_v is, and the norm's weight is 1.

    State: the heads' S, dim head_dim, and the last input, dim. FLOPs a token: 8 dim^2 + 4 dim (decay_rank + a_rank +
    gate_rank) + 9 dim head_dim, the last the recurrence's.

    Args:
        head_dim: width of a head, which must divide dim; a narrower dim is one head.
        decay_rank, a_rank, gate_rank: of the maps to w, alpha and g.
    """

    countable = False  # chunks cost differently; `flops` is the recurrence's

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        head_dim: int = 64,
        decay_rank: int = 16,
        a_rank: int = 16,
        gate_rank: int = 64,
    ):
        super().__init__(dim, max_length)
        positive(head_dim=head_dim, decay_rank=decay_rank, a_rank=a_rank, gate_rank=gate_rank)
        self.head_dim, self.ranks = min(head_dim, dim), decay_rank + a_rank + gate_rank
        self.num_heads = split_heads(dim, self.head_dim, option="head_dim")
        self.r, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.decay = low_rank(dim, decay_rank, nn.Tanh())
        self.rate = low_rank(dim, a_rank, nn.Identity())
        self.gate = low_rank(dim, gate_rank, nn.Sigmoid())
        for linear in (self.r, self.k, self.v, self.out):
            bound = (0.05 if linear is self.k else 0.5) * dim**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)

        place = torch.linspace(-0.5, 0.5, dim)  # of a channel among all, and within its head
        within = torch.linspace(-1, 1, self.head_dim).repeat(self.num_heads)
        within = within * within.abs()
        self.mix = new_mix(dim, *SHIFTS)
        self.decay_bias = nn.Parameter(6 * place - 2.5 + 2.5 * within)
        self.rate_bias = nn.Parameter(0.4 * place - 0.19 + 0.3 * within)
        self.find = nn.Parameter(0.71 - 0.1 * place)  # c
        self.write = nn.Parameter(torch.full((dim,), 1.02))  # d
        self.bonus = nn.Parameter(torch.full((dim,), -0.04))  # u
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def heads(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x and the inputs one token before (B, T, dim) -> r, k, v, -kappa, kappa alpha (B, H, T, d) and log w, at
        least fp32; g (B, T, dim)."""
        r, w, k, v, a, g = mixed(x, past, self.mix)
        r, k, v = self.r(r), self.k(k), self.v(v)
        decay = -math.exp(-0.5) * torch.sigmoid(kernels.wide(self.decay(w)) + self.decay_bias)
        rate = torch.sigmoid(kernels.wide(self.rate(a)) + self.rate_bias)
        found = (kernels.wide(k) * self.find).unflatten(-1, (self.num_heads, -1))
        kappa = F.normalize(found, dim=-1).flatten(-2)
        k = k * (1 + (rate - 1) * self.write)
        parts = r, *(t.to(v.dtype) for t in (k, v, -kappa, kappa * rate)), decay
        return *(t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in parts), self.gate(g)

    def read(self, y: torch.Tensor, r: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """What the state says (B, H, T, d) -> (B, T, dim)."""
        y = F.layer_norm(kernels.wide(y), (self.head_dim,), eps=1e-5 * self.head_dim)
        y = y.transpose(1, 2).flatten(2) * self.norm_weight + self.norm_bias  # (B, T, dim)
        weight = kernels.wide(r) * k * self.bonus.view(self.num_heads, 1, -1)
        own = weight.sum(-1, keepdim=True) * v  # the token's own value, whatever the state holds
        return self.out(((y + own.transpose(1, 2).flatten(2)) * g).to(g.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        r, k, v, a, b, decay, g = self.heads(x, before(x))
        return self.read(kernels.dplr_delta_rule(r, k, v, a, b, decay), r, k, v, g)

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last input (B, dim), and S (B, H, d, d)."""
        state = self.zeros(batch, self.num_heads, self.head_dim, self.head_dim)
        return self.zeros(batch, self.dim), kernels.wide(state)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        r, k, v, a, b, decay, g = self.heads(x_t.unsqueeze(1), state[0].unsqueeze(1))  # one token
        held = state[1]
        q, keys, values, a, b = (t.to(held.dtype) for t in (r, k, v, a, b))  # (B, H, 1, d)
        total = decay.exp().mT * held + b.mT * (a @ held) + keys.mT * values
        return self.read(q @ total, r, k, v, g).squeeze(1), (x_t, total)

    def state_size(self, length: int) -> int:
        return self.dim * (self.head_dim + 1)

    def flops(self, length: int) -> int:
        return length * self.dim * (8 * self.dim + 4 * self.ranks + 9 * self.head_dim)


def low_rank(dim: int, rank: int, activation: nn.Module) -> nn.Sequential:
    """A map of dim through `rank` to dim, which begins as the activation's value at 0, mapped."""
    down, up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)
    nn.init.zeros_(down.weight)
    nn.init.orthogonal_(up.weight, gain=0.1 * max(1.0, rank / dim) ** 0.5)
    return nn.Sequential(down, activation, up)
