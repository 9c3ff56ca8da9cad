"""H3: two state space models and two gates, a linear attention whose memory is a pair of convolutions."""

import math
from typing import Any

import torch
from torch import nn

import kernels
import layers
from kernels.checks import as_given
from layers.base import Layer, positive, split_heads
from layers.gated_projection import fft_conv_flops, from_tokens, new_taps, to_tokens
from layers.mamba import log_steps

STRIDE = 32  # tokens between the powers of A that are kept


class DiagonalFilter(nn.Module):
    """Taps h_c[t] = 2 Re(sum_n c_n b_n A_n^t) of `channels` state space models of `num_states` / 2 complex states each:
    S4D, Gu et al. 2022 (arXiv 2206.11893), its "Lin" initialisation, by the bilinear rule.

    A = (1 + dt a / 2) / (1 - dt a / 2) and b = dt / (1 - dt a / 2) with a_n = -exp(log_rate_n) + i frequency_n, which
    begin at -1/2 + i pi n. What the models of several conjugate pairs read, c, begins normal and takes in their b.
    """

    def __init__(self, channels: int, num_states: int):
        super().__init__()
        if num_states % 2:
            raise ValueError(f"num_states must be even, conjugate pairs, got {num_states}")
        pairs = num_states // 2
        self.log_dt = nn.Parameter(log_steps(channels))
        self.log_rate = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(pairs).repeat(channels, 1))
        self.read = nn.Parameter(torch.randn(2, channels, pairs) * 0.5**0.5)  # real and imaginary part of c

    def discrete(self) -> tuple[torch.Tensor, ...]:
        """log |A|, arg A, and b c as real and imaginary part, each (channels, pairs), at least fp32. In real numbers:
        compilers know no others."""
        half = 0.5 * kernels.wide(self.log_dt).exp().unsqueeze(-1)
        real, imaginary = -half * self.log_rate.exp(), half * self.frequency  # dt a / 2
        size = (1 - real) ** 2 + imaginary**2  # |1 - dt a / 2|^2
        log_abs = 0.5 * (((1 + real) ** 2 + imaginary**2).log() - size.log())
        angle = torch.atan2(2 * imaginary, 1 - real**2 - imaginary**2)
        b = 2 * half * (1 - real) / size, 2 * half * imaginary / size
        return log_abs, angle, b[0] * self.read[0] - b[1] * self.read[1], b[0] * self.read[1] + b[1] * self.read[0]

    def forward(self, length: int) -> torch.Tensor:
        """(channels, length)."""
        log_abs, angle, real, imaginary = (t.unsqueeze(-1) for t in self.discrete())
        # A^t = A^(STRIDE i) A^j: no power of each state at each token is ever held
        j = torch.arange(STRIDE, device=angle.device, dtype=angle.dtype)
        i = STRIDE * torch.arange(-(-length // STRIDE), device=angle.device, dtype=angle.dtype)
        (cos_i, sin_i), (cos_j, sin_j) = (_powers(log_abs * t, angle * t) for t in (i, j))  # (channels, pairs, .)
        coarse = torch.cat([real * cos_i - imaginary * sin_i, -(real * sin_i + imaginary * cos_i)], dim=1)
        with as_given(angle):
            taps = 2 * coarse.mT @ torch.cat([cos_j, sin_j], dim=1)  # (channels, L / STRIDE, STRIDE)
        return taps.flatten(1)[:, :length]

    def step(self, u: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u (B, channels, n), state (B, channels, n, pairs, 2) -> outputs like u, next state; n inputs a model."""
        log_abs, angle, real, imaginary = (t.unsqueeze(1) for t in self.discrete())  # (channels, 1, pairs)
        a = log_abs.exp() * angle.cos(), log_abs.exp() * angle.sin()
        s, r = state.unbind(-1)
        s, r = a[0] * s - a[1] * r + u.unsqueeze(-1), a[0] * r + a[1] * s
        return 2 * (real * s - imaginary * r).sum(-1), torch.stack([s, r], dim=-1)


def _powers(log_abs: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and imaginary part of the number whose logarithm this is."""
    size = log_abs.exp()
    return size * angle.cos(), size * angle.sin()


@layers.register("h3", kind="sequence")
class H3(Layer):
    """y = W_o (q * diagonal(shift(k) * v)) with q, k, v linear maps of x: a short and a long convolution.

    Fu, Dao et al. 2022 (arXiv 2212.14052), as in Zoology. The shift model's state is the last `num_states` tokens, so
    that it is a filter of as many taps; the diagonal model's filter is S4D's, with a direct path. Heads of
    p = head_dim channels: all p^2 products of a head's keys and values go through one model. State: a model's states of
    each product, dim p num_states, and the shift's, dim (num_states - 1). FLOPs a token: 8 dim^2,
    2 dim num_states, p dim (10 log2 T + 4).

    Args:
        num_states: states of both models, even; None: max_length, as in Zoology's figure 2.
        head_dim: channels of a head.
    """

    takes_rounded = True
    countable = False  # convolutions are no matrix products

    def __init__(self, dim: int, max_length: int, *, num_states: int | None = 64, head_dim: int = 1):
        super().__init__(dim, max_length)
        num_states = max_length + max_length % 2 if num_states is None else num_states
        positive(num_states=num_states)
        self.num_states, self.head_dim = num_states, head_dim
        self.num_heads = split_heads(dim, head_dim, option="head_dim")
        self.qkv = nn.Linear(dim, 3 * dim)
        self.shift = new_taps(num_states, dim, num_states)  # the last is the current token's
        self.direct = nn.Parameter(torch.randn(dim))
        self.filter = DiagonalFilter(self.num_heads, num_states)
        self.skip = nn.Parameter(torch.randn(self.num_heads))
        self.out = nn.Linear(dim, dim)

    def products(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, dim, ...) -> the three as the p^2 products of each head have them, (B, H, p, p, ...): keys' and queries'
        channel first, then the values'."""
        q, k, v = (t.unflatten(1, (self.num_heads, self.head_dim)) for t in (q, k, v))
        shape = (-1, -1, self.head_dim, self.head_dim, *[-1] * (k.dim() - 3))
        return q.unsqueeze(3).expand(shape), k.unsqueeze(3).expand(shape), v.unsqueeze(2).expand(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        q, k, v = from_tokens(self.qkv, x).chunk(3, dim=1)  # (B, dim, T)
        k = kernels.fft_conv(k, self.shift.flip(-1), skip=self.direct)
        taps, skip = self.filter(x.shape[1]), self.skip
        if self.head_dim > 1:
            q, k, v = (t.flatten(1, 3) for t in self.products(q, k, v))
            taps, skip = (t.repeat_interleave(self.head_dim**2, dim=0) for t in (taps, skip))
        y = kernels.fft_conv(v, taps, skip=skip, pre_gate=k, post_gate=q)
        if self.head_dim > 1:
            y = y.unflatten(1, (self.num_heads, self.head_dim, self.head_dim)).sum(2).flatten(1, 2)
        return to_tokens(self.out, y)

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last keys (B, dim, num_states - 1), and the diagonal models' states, (B, H, p^2, num_states / 2, 2)."""
        past = self.zeros(batch, self.dim, self.num_states - 1)
        states = self.zeros(batch, self.num_heads, self.head_dim**2, self.num_states // 2, 2)
        return past, kernels.wide(states)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        q, k, v = self.qkv(x_t).chunk(3, dim=1)  # (B, dim)
        window = torch.cat([state[0], k.unsqueeze(-1)], dim=-1)
        k = (window * self.shift).sum(-1) + self.direct * k
        q, k, v = self.products(q, k, v)  # (B, H, p, p)
        inputs = (k * v).flatten(2)
        y, states = self.filter.step(inputs, state[1])
        y = (y + self.skip.unsqueeze(-1) * inputs).to(x_t.dtype).unflatten(2, (self.head_dim, self.head_dim))
        return self.out((q * y).sum(2).flatten(1)), (window[..., 1:], states)

    def state_size(self, length: int) -> int:
        return self.dim * self.head_dim * self.num_states + self.dim * (self.num_states - 1)

    def flops(self, length: int) -> int:
        products = self.dim * self.head_dim
        maps = 8 * self.dim**2 + 2 * self.dim * self.num_states
        return length * (maps + 4 * products) + fft_conv_flops(products, length)
