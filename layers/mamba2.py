"""Mamba-2: a selective state space model with one decay a head, which makes it a linear attention that forgets."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import Layer, positive, split_heads
from layers.gated_projection import new_taps
from layers.mamba import new_steps
from layers.norm import WideRMSNorm


@layers.register("mamba2", kind="sequence")
class Mamba2(Layer):
    """S[t] = exp(dt a) S[t-1] + dt b[t] u[t]^T, y = W_o norm((S[t]^T c[t] + D u[t]) * silu(W_z x)), a head; u, b and c
    are silu(short_conv(W x)), b and c common to all heads, dt = softplus(W_dt x + bias) a head.

    Dao and Gu 2024 (arXiv 2405.21060), with the defaults of its code: heads of 64 channels, 128 states. The decays -a
    begin uniform in (1, 16), step sizes as Mamba's; the RMS norm is over all channels, after the gate. State, with
    C = expansion dim and N = num_states: C N, and the short convolution's last inputs, (C + 2 N) (kernel_size - 1).
    FLOPs a token, with C / head_dim heads: 2 dim (3 C + 2 N + heads) + 2 kernel_size (C + 2 N) + 5 C N + 2 C.

    Args:
        expansion: channels, in units of dim.
        num_states: states of a channel, the width of b and c.
        head_dim: channels of a head; it must divide expansion dim, a narrower layer is one head.
        kernel_size: taps of the short convolution.
    """

    countable = False  # chunks cost differently; `flops` is the recurrence's

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        expansion: int = 2,
        num_states: int = 128,
        head_dim: int = 64,
        kernel_size: int = 4,
    ):
        super().__init__(dim, max_length)
        positive(expansion=expansion, num_states=num_states, head_dim=head_dim, kernel_size=kernel_size)
        self.channels, self.num_states, self.kernel_size = expansion * dim, num_states, kernel_size
        self.num_heads = split_heads(self.channels, min(head_dim, self.channels), "expansion dim", "head_dim")
        self.width = self.channels + 2 * num_states
        self.streams = nn.Linear(dim, self.width, bias=False)  # u, b, c
        self.taps = new_taps(kernel_size, self.width, kernel_size)
        self.bias = new_taps(kernel_size, self.width)
        self.gate = nn.Linear(dim, self.channels, bias=False)
        self.dt = nn.Linear(dim, self.num_heads, bias=False)
        self.dt_bias = new_steps(self.num_heads)
        self.log_a = nn.Parameter(torch.empty(self.num_heads).uniform_(1.0, 16.0).log())
        self.skip = nn.Parameter(torch.ones(self.num_heads))
        self.norm = WideRMSNorm(self.channels, eps=1e-5)
        self.out = nn.Linear(self.channels, dim, bias=False)

    def heads(self, streams: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The streams after their convolution (B, T, C + 2 N), x (B, T, dim) -> u (B, H, T, head_dim), b and c
        (B, H, T, N), and the step sizes (B, H, T), at least fp32."""
        parts = streams.split([self.channels, self.num_states, self.num_states], dim=-1)
        u = parts[0].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        b, c = (t.unsqueeze(1).expand(-1, self.num_heads, -1, -1) for t in parts[1:])
        # the softplus; that of torch gives compiled code a gradient laid out otherwise than it says
        return u, b, c, -F.logsigmoid(-kernels.wide(self.dt(x)) - self.dt_bias).transpose(1, 2)

    def read(self, y: torch.Tensor, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What the heads have read (B, H, T, head_dim), and their inputs -> (B, T, dim)."""
        y = kernels.wide(y) + self.skip.view(-1, 1, 1) * u
        gated = y.transpose(1, 2).flatten(2) * F.silu(self.gate(x))
        return self.out(self.norm(gated).to(x.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        streams = kernels.short_conv(self.streams(x).transpose(1, 2), self.taps, self.bias, activation="silu")
        u, b, c, dt = self.heads(streams.transpose(1, 2), x)
        decay = -self.log_a.exp().unsqueeze(-1) * dt
        v = u * dt.unsqueeze(-1).to(u.dtype)
        return self.read(kernels.linear_attention(c, b, v, decay=decay, normalize=False), u, x)

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The short convolution's past (B, C + 2 N, K - 1), and S (B, H, N, head_dim)."""
        past = self.zeros(batch, self.width, self.kernel_size - 1)
        head_dim = self.channels // self.num_heads
        return past, kernels.wide(self.zeros(batch, self.num_heads, self.num_states, head_dim))

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        window = torch.cat([state[0], self.streams(x_t).unsqueeze(-1)], dim=-1)
        streams = kernels.short_conv(window, self.taps, self.bias, activation="silu")[..., -1:]
        x = x_t.unsqueeze(1)  # one token
        u, b, c, dt = self.heads(streams.transpose(1, 2), x)
        dt = dt.unsqueeze(-1)  # (B, H, 1, 1)
        total = torch.exp(-self.log_a.exp().view(-1, 1, 1) * dt) * state[1] + dt * b.transpose(2, 3) * u
        return self.read(c.to(total.dtype) @ total, u, x).squeeze(1), (window[..., 1:], total)

    def state_size(self, length: int) -> int:
        return self.channels * self.num_states + self.width * (self.kernel_size - 1)

    def flops(self, length: int) -> int:
        maps = 2 * self.dim * (self.width + self.num_heads + 2 * self.channels) + 2 * self.kernel_size * self.width
        return length * (maps + 5 * self.channels * self.num_states + 2 * self.channels)
