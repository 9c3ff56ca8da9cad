"""Mamba: a selective state space model, the scan of a short convolution, gated."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import Layer, positive
from layers.gated_projection import from_tokens, new_taps, of_columns, to_tokens

STEPS = 1e-3, 1e-1  # between which the initial step sizes lie, evenly on a logarithmic scale


def log_steps(number: int) -> torch.Tensor:
    """Logarithms of initial step sizes."""
    return torch.empty(number).uniform_(*map(math.log, STEPS))


def new_steps(number: int) -> nn.Parameter:
    """Initial values whose softplus are step sizes."""
    step = log_steps(number).exp()
    return nn.Parameter(step + torch.log(-torch.expm1(-step)))


@layers.register("mamba", kind="sequence")
class Mamba(Layer):
    """y = W_o (scan(u) * silu(z)), u = silu(short_conv(W_u x)), z = W_z x; the scan's h[t] = exp(dt a) h[t-1] + dt u b,
    c.h[t] + D u[t] with step sizes dt = softplus(W_2 W_1 u + bias), b and c linear maps of u.

    Gu and Dao 2023 (arXiv 2312.00752); defaults of the MAD protocol: twice as many channels as dim, 4 states each, a
    short convolution of 4 taps, step sizes of rank dim / 16. The decays a begin at -1 .. -num_states. State, with
    C = expansion dim: C num_states, and the short convolution's last inputs, C (kernel_size - 1). FLOPs a token:
    6 C dim + 2 C (kernel_size + 2 rank + 2 num_states) + 9 C num_states + 4 C.

    Args:
        expansion: channels, in units of dim.
        num_states: states of a channel.
        kernel_size: taps of the short convolution.
        rank: of the map to the step sizes; None: dim / 16, rounded up.
    """

    takes_rounded = True
    countable = False  # the scan is no matrix product

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        expansion: int = 2,
        num_states: int = 4,
        kernel_size: int = 4,
        rank: int | None = None,
    ):
        super().__init__(dim, max_length)
        rank = -(-dim // 16) if rank is None else rank
        positive(expansion=expansion, num_states=num_states, kernel_size=kernel_size, rank=rank)
        self.channels, self.num_states, self.kernel_size, self.rank = expansion * dim, num_states, kernel_size, rank
        self.inputs = nn.Linear(dim, 2 * self.channels, bias=False)  # u, then z
        self.taps = new_taps(kernel_size, self.channels, kernel_size)
        self.bias = new_taps(kernel_size, self.channels)
        self.select = nn.Linear(self.channels, rank + 2 * num_states, bias=False)  # of the step sizes, b, c
        self.dt = nn.Linear(rank, self.channels)
        nn.init.uniform_(self.dt.weight, -(rank**-0.5), rank**-0.5)
        self.dt.bias = new_steps(self.channels)
        self.log_a = nn.Parameter(torch.arange(1.0, num_states + 1).log().repeat(self.channels, 1))
        self.skip = nn.Parameter(torch.ones(self.channels))
        self.out = nn.Linear(self.channels, dim, bias=False)

    def selected(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """u (C, N) -> step sizes (C, N), at least fp32; b and c (num_states, N)."""
        dt, b, c = of_columns(self.select, u).split([self.rank, self.num_states, self.num_states])
        step = self.dt.weight @ dt
        return F.softplus(kernels.wide(step) + self.dt.bias.unsqueeze(-1)), b, c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        u, z = from_tokens(self.inputs, x).chunk(2, dim=1)  # (B, C, T)
        u = kernels.short_conv(u, self.taps, self.bias, activation="silu")
        selected = self.selected(u.transpose(0, 1).flatten(1))
        dt, b, c = (t.view(len(t), *x.shape[:2]).transpose(0, 1) for t in selected)
        y = kernels.selective_scan(u, dt, -self.log_a.exp(), b, c, self.skip, z)
        return to_tokens(self.out, y)

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The short convolution's past (B, C, K - 1), and the scan's state (B, C, num_states)."""
        past = self.zeros(batch, self.channels, self.kernel_size - 1)
        return past, kernels.wide(self.zeros(batch, self.channels, self.num_states))

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        u, z = self.inputs(x_t).chunk(2, dim=-1)
        window = torch.cat([state[0], u.unsqueeze(-1)], dim=-1)
        u = kernels.short_conv(window, self.taps, self.bias, activation="silu")[..., -1]  # (B, C)
        dt, b, c = (t.t().unsqueeze(-1) for t in self.selected(u.t()))  # (B, C, 1), (B, N, 1)
        b, c = b.transpose(1, 2).to(dt.dtype), c.transpose(1, 2).to(dt.dtype)
        h = torch.exp(-dt * self.log_a.exp()) * state[1] + dt * u.unsqueeze(-1) * b
        y = (h * c).sum(-1) + self.skip * u
        return self.out((y * F.silu(z)).to(x_t.dtype)), (window[..., 1:], h)

    def state_size(self, length: int) -> int:
        return self.channels * (self.num_states + self.kernel_size - 1)

    def flops(self, length: int) -> int:
        maps = 6 * self.dim + 2 * (self.kernel_size + 2 * self.rank + 2 * self.num_states)
        return length * self.channels * (maps + 9 * self.num_states + 4)
