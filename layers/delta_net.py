"""DeltaNet, plain and gated: linear attention that overwrites what a key held before."""

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


@layers.register("delta_net", kind="sequence")
class DeltaNet(Layer):
    """S[t] = (I - beta k k^T) S[t-1] + beta k v^T, y = W_o norm(S[t]^T q[t]), a head, with beta = sigmoid(W_b x).

    Yang et al. 2024 (arXiv 2406.06484): q, k, v are silu(short_conv(W x)), q and k then of length 1, and an RMS norm
    over each head. Defaults of Zoology's sweeps: two heads, values as wide as keys. State: the heads' S, dim values a
    head (dim / num_heads), and the short convolutions' last inputs. FLOPs a token, with values of V = expand_v dim:
    4 dim^2 + 4 dim V + 2 dim num_heads + 2 kernel_size (2 dim + V) + 6 dim V / num_heads.

    Args:
        expand_v: width of the values, in units of that of the keys.
        kernel_size: taps of the short convolutions.
    """

    countable = False  # chunks cost differently; `flops` is the recurrence's
    recurrence = 6  # FLOPs for each element of S

    def __init__(
        self, dim: int, max_length: int, *, num_heads: int = 2, expand_v: int = 1, kernel_size: int = 4
    ):  # fmt: skip
        super().__init__(dim, max_length)
        positive(expand_v=expand_v, kernel_size=kernel_size)
        self.num_heads, self.kernel_size = num_heads, kernel_size
        self.head_dim = split_heads(dim, num_heads)
        self.values = expand_v * dim
        self.channels = 2 * dim + self.values
        self.qkv = nn.Linear(dim, self.channels, bias=False)
        self.taps = new_taps(kernel_size, self.channels, kernel_size)
        self.beta = nn.Linear(dim, num_heads, bias=False)
        self.norm = WideRMSNorm(self.values // num_heads, eps=1e-5)
        self.out = nn.Linear(self.values, dim, bias=False)

    def decay(self, x: torch.Tensor) -> torch.Tensor | None:
        """x (B, T, dim) -> logarithms of the state's factors (B, H, T); None: nothing is forgotten."""
        return None

    def heads(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The streams after their convolution (B, channels, T) -> q, k (B, H, T, d), v (B, H, T, dv)."""
        parts = streams.transpose(1, 2).split([self.dim, self.dim, self.values], dim=-1)
        q, k, v = (s.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for s in parts)
        q, k = (F.normalize(kernels.wide(t), dim=-1, eps=1e-6).to(v.dtype) for t in (q, k))
        return q, k, v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        streams = kernels.short_conv(self.qkv(x).transpose(1, 2), self.taps, activation="silu")
        beta = torch.sigmoid(kernels.wide(self.beta(x))).transpose(1, 2)  # (B, H, T)
        y = kernels.delta_rule(*self.heads(streams), beta, self.decay(x))
        return self.out(self.norm(y).transpose(1, 2).flatten(2).to(x.dtype))

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The short convolutions' past (B, channels, K - 1), and S (B, H, d, dv)."""
        past = self.zeros(batch, self.channels, self.kernel_size - 1)
        return past, kernels.wide(self.zeros(batch, self.num_heads, self.head_dim, self.values // self.num_heads))

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        window = torch.cat([state[0], self.qkv(x_t).unsqueeze(-1)], dim=-1)
        streams = kernels.short_conv(window, self.taps, activation="silu")[..., -1:]
        q, k, v = (t.to(state[1].dtype) for t in self.heads(streams))  # (B, H, 1, d)
        beta = torch.sigmoid(kernels.wide(self.beta(x_t))).view(-1, self.num_heads, 1, 1)
        decay = self.decay(x_t.unsqueeze(1))
        held = state[1] if decay is None else decay.exp().unsqueeze(-1) * state[1]
        total = held + k.transpose(2, 3) * (beta * (v - k @ held))
        y = self.norm(q @ total).flatten(1)
        return self.out(y.to(x_t.dtype)), (window[..., 1:], total)

    def state_size(self, length: int) -> int:
        return self.head_dim * self.values + self.channels * (self.kernel_size - 1)

    def flops(self, length: int) -> int:
        maps = 4 * self.dim**2 + 4 * self.dim * self.values + 2 * self.dim * self.num_heads
        return length * (maps + 2 * self.kernel_size * self.channels + self.recurrence * self.head_dim * self.values)


@layers.register("gated_delta_net", kind="sequence")
class GatedDeltaNet(DeltaNet):
    """DeltaNet whose state decays first, by exp(-exp(a) softplus(W_a x + bias)) a head.

    Yang et al. 2024 (arXiv 2412.06464), as in Zoology's sweeps: values twice as wide as keys, no gate on the output.
    Decay rates begin uniform in (0, 16), step sizes as Mamba's. State as in `delta_net`; FLOPs a token: 2 dim num_heads
    and dim V / num_heads more; the rest as in `delta_net`.
    """

    recurrence = 7

    def __init__(
        self, dim: int, max_length: int, *, num_heads: int = 2, expand_v: int = 2, kernel_size: int = 4
    ):  # fmt: skip
        super().__init__(dim, max_length, num_heads=num_heads, expand_v=expand_v, kernel_size=kernel_size)
        self.rate = nn.Linear(dim, num_heads, bias=False)
        self.rate_bias = new_steps(num_heads)
        self.log_a = nn.Parameter(torch.empty(num_heads).uniform_(0.0, 16.0).clamp(min=1e-4).log())

    def decay(self, x: torch.Tensor) -> torch.Tensor:
        rate = kernels.wide(self.rate(x)) + self.rate_bias
        return (self.log_a.exp() * F.logsigmoid(-rate)).transpose(1, 2)  # -softplus(rate) = logsigmoid(-rate)

    def flops(self, length: int) -> int:
        return super().flops(length) + 2 * length * self.dim * self.num_heads
