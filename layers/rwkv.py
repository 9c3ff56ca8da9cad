"""RWKV-4, 5 and 6: time mixing whose state decays channel by channel, and their channel mixing.

All mix the token before into x (layers/token_shift.py), and all read a state that the token itself has not yet entered:
it counts with a bonus u of its own. Initial values are those of the official code's first layer, but for linear maps,
which are drawn as everywhere here. RWKV-7 is in a file of its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import Layer, positive, split_heads
from layers.token_shift import before, mixed, new_mix

LARGEST = 60.0  # of RWKV-4's keys, whose exponentials are added up


def new_decay(dim: int, low: float, high: float) -> nn.Parameter:
    """w_0 of the decays exp(-exp(w_0)), from slow channels to fast."""
    return nn.Parameter(low + (high - low) * torch.linspace(0, 1, dim) ** 0.7)


def zigzag(dim: int, size: float) -> torch.Tensor:
    """0, size, -size, 0, ..."""
    return ((torch.arange(dim) + 1) % 3 - 1) * size


@layers.register("rwkv4", kind="sequence")
class RWKV4(Layer):
    """y[t] = W_o (sigmoid(r[t]) * a / b), a = sum_{s < t} w^(t-1-s) e^k[s] v[s] + e^(u + k[t]) v[t], b likewise for
    v = 1; r, k and v linear maps of the mixed x, decays w = exp(-exp(w_0)) a channel.

    Peng et al. 2023 (arXiv 2305.13048); attention whose scores depend on the key and its distance alone. Keys are kept
    within +-60, beyond which they are equal and have no gradient; the official code subtracts a running maximum from
    the exponents. State: a, b and the last input, 3 dim. FLOPs a token: 8 dim^2 + 10 dim.
    """

    countable = False  # the sums are no matrix products

    def __init__(self, dim: int, max_length: int):
        super().__init__(dim, max_length)
        self.r, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.mix = new_mix(dim, 0.5, 1.0, 1.0)  # of r, k, v
        self.decay = new_decay(dim, -5.0, 3.0)
        self.bonus = nn.Parameter(torch.tensor(0.3).log() + zigzag(dim, 0.5))

    def streams(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x, inputs one token before (B, T, dim) -> sigmoid(r), and at least in fp32 k and v (B, T, dim)."""
        r, k, v = mixed(x, past, self.mix)
        return self.r(r).sigmoid(), kernels.wide(self.k(k)).clamp(-LARGEST, LARGEST), kernels.wide(self.v(v))

    def read(self, r: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sums: Any) -> torch.Tensor:
        """With the sums over the tokens before: (B, T, dim)."""
        own = (k + self.bonus).clamp(-LARGEST - 20, LARGEST + 20).exp()
        return self.out(r * ((sums[0] + own * v) / (sums[1] + own)).to(r.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        r, k, v = self.streams(x, before(x))
        weight = k.exp()
        u = torch.cat([weight * v, weight], -1).transpose(1, 2)  # (B, 2 dim, T)
        one = torch.ones_like(u[:, :1])  # every token a step of 1, written and read as it is
        sums = kernels.selective_scan(u, one.expand_as(u), -self.decay.exp().repeat(2).unsqueeze(-1), one, one)
        return self.read(r, k, v, before(sums.mT).chunk(2, -1))

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last input, a and b, each (B, dim)."""
        last, a, b = (self.zeros(batch, self.dim) for _ in range(3))
        return last, kernels.wide(a), kernels.wide(b)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        last, *sums = state
        r, k, v = (s.squeeze(1) for s in self.streams(x_t.unsqueeze(1), last.unsqueeze(1)))
        y, decay, weight = self.read(r, k, v, sums), (-self.decay.exp()).exp(), k.exp()
        return y, (x_t, decay * sums[0] + weight * v, decay * sums[1] + weight)

    def state_size(self, length: int) -> int:
        return 3 * self.dim

    def flops(self, length: int) -> int:
        return length * (8 * self.dim**2 + 10 * self.dim)


@layers.register("rwkv5", kind="sequence")
class RWKV5(Layer):
    """y = W_o (silu(g) * norm((S[t-1] + (u * k[t]) v[t]^T)^T r[t])), S[t] = diag(w) S[t-1] + k[t] v[t]^T, a head.

    Peng et al. 2024 (Eagle, arXiv 2404.05892, section 4): RWKV-4 with a matrix for a state. r, k, v, g are linear maps
    of the mixed x, the decays w = exp(-exp(w_0)) a channel's; the norm, a group norm, has eps = 64e-5, as the official
    code divides its input by 8. Heads of 16 channels: the MAD protocol's. State: the heads' S, dim head_dim, and the
    last input, dim. FLOPs a token: 10 dim^2 + 5 dim head_dim.

    Args:
        head_dim: width of a head, which must divide dim.
    """

    countable = False  # chunks cost differently; `flops` is the recurrence's
    powers = 0.5, 1.0, 1.0, 0.5  # how fast the shares of the token before fall over channels: r, k, v, g

    def __init__(self, dim: int, max_length: int, *, head_dim: int = 16):
        super().__init__(dim, max_length)
        self.head_dim, self.num_heads = head_dim, split_heads(dim, head_dim, option="head_dim")
        self.r, self.k, self.v, self.g, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(5))
        self.mix = new_mix(dim, *self.powers)
        self.decay = new_decay(dim, -6.0, -1.0)
        self.bonus = nn.Parameter(zigzag(dim, 0.1))
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def shifted(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x, inputs one token before (B, T, dim) -> the inputs of r, k, v and g, and w_0, (B, T, dim) or (dim,)."""
        return *mixed(x, past, self.mix), self.decay

    def heads(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """-> r, k, v and log w (B, H, T, d), the last at least fp32; the gate (B, T, dim)."""
        r, k, v, g, decay = self.shifted(x, past)
        decay = -kernels.wide(decay).exp().expand(x.shape)
        parts = self.r(r), self.k(k), self.v(v), decay
        return *(t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in parts), F.silu(self.g(g))

    def read(self, y: torch.Tensor, r: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """What the state before says (B, H, T, d) -> (B, T, dim)."""
        weight = kernels.wide(r) * k * self.bonus.view(self.num_heads, 1, -1)
        y = F.layer_norm(kernels.wide(y) + weight.sum(-1, keepdim=True) * v, (self.head_dim,), eps=64e-5)
        y = y.transpose(1, 2).flatten(2) * self.norm_weight + self.norm_bias  # (B, T, dim)
        return self.out((y * g).to(g.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        r, k, v, decay, g = self.heads(x, before(x))
        # the state before a token: what the token before would read, asked with this one's r
        asked = F.pad(r[:, :, 1:], (0, 0, 0, min(1, r.shape[2])))
        y = kernels.linear_attention(asked, k, v, decay=decay, normalize=False)
        return self.read(before(y), r, k, v, g)

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last input (B, dim), and S (B, H, d, d)."""
        state = self.zeros(batch, self.num_heads, self.head_dim, self.head_dim)
        return self.zeros(batch, self.dim), kernels.wide(state)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        last, held = state
        r, k, v, decay, g = self.heads(x_t.unsqueeze(1), last.unsqueeze(1))  # one token
        y = self.read(r.to(held.dtype) @ held, r, k, v, g).squeeze(1)
        return y, (x_t, decay.exp().mT * held + k.mT.to(held.dtype) * v)

    def state_size(self, length: int) -> int:
        return self.dim * (self.head_dim + 1)

    def flops(self, length: int) -> int:
        return length * self.dim * (10 * self.dim + 5 * self.head_dim)


@layers.register("rwkv6", kind="sequence")
class RWKV6(RWKV5):
    """RWKV-5 whose decays and shares of the token before depend on the token.

    Peng et al. 2024 (Finch, arXiv 2404.05892, section 4): with m = x + mu_x * (x[t-1] - x), each map's mu gains A_2
    tanh(A_1 m), of rank mix_rank, and w_0 gains W_2 tanh(W_1 m_w), of rank decay_rank, m_w mixed as the maps' inputs.
    Widths and ranks of the MAD protocol. State: as RWKV-5's. FLOPs a token: 10 dim^2 + 20 dim mix_rank + 4 dim
    decay_rank + 5 dim head_dim.

    Args:
        head_dim: width of a head, which must divide dim.
        mix_rank, decay_rank: of the maps to the shares, and to the decays.
    """

    powers = *RWKV5.powers, 1.0  # and of w

    def __init__(self, dim: int, max_length: int, *, head_dim: int = 16, mix_rank: int = 32, decay_rank: int = 64):
        super().__init__(dim, max_length, head_dim=head_dim)
        positive(mix_rank=mix_rank, decay_rank=decay_rank)
        self.ranks = mix_rank, decay_rank
        self.mix_all = new_mix(dim, 1.0)
        self.mix_down, self.mix_up = small(dim, 5 * mix_rank), small(5, mix_rank, dim)
        self.decay_down, self.decay_up = small(dim, decay_rank), small(decay_rank, dim)

    def shifted(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        change = past - x
        found = ((x + change * self.mix_all) @ self.mix_down).tanh().unflatten(-1, (5, -1))  # (B, T, 5, rank)
        shares = torch.einsum("btmr,mrd->mbtd", found, self.mix_up) + self.mix.view(5, 1, 1, -1)
        *inputs, w = (x + change * shares).unbind(0)
        return *inputs, self.decay + (w @ self.decay_down).tanh() @ self.decay_up

    def flops(self, length: int) -> int:
        mix_rank, decay_rank = self.ranks
        return super().flops(length) + length * self.dim * (20 * mix_rank + 4 * decay_rank)


def small(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-1e-4, 1e-4))


@layers.register("rwkv_channel", kind="channel")
class RWKVChannel(Layer):
    """y = sigmoid(W_r x_r) * W_v relu(W_k x_k)^2, x_r and x_k mixed with the token before.

    The channel mixing of RWKV-4 to 6 (Peng et al. 2023, arXiv 2305.13048); width 4 dim, the MAD
    protocol's. State: the last input, dim. FLOPs a token: 4 dim width + 2 dim^2.
    """

    def __init__(self, dim: int, max_length: int, *, width: int | None = None):
        super().__init__(dim, max_length)
        width = 4 * dim if width is None else width
        positive(width=width)
        self.width = width
        self.r, self.k = nn.Linear(dim, dim, bias=False), nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)
        self.mix = new_mix(dim, 1.0, 1.0)  # of r, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        return self.mapped(x, before(x))

    def mapped(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        r, k = mixed(x, past, self.mix)
        return self.r(r).sigmoid() * self.down(self.k(k).relu().square())

    def init_state(self, batch: int) -> tuple[torch.Tensor]:
        """The last input (B, dim)."""
        return (self.zeros(batch, self.dim),)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return self.mapped(x_t.unsqueeze(1), state[0].unsqueeze(1)).squeeze(1), (x_t,)

    def state_size(self, length: int) -> int:
        return self.dim

    def flops(self, length: int) -> int:
        return length * (4 * self.dim * self.width + 2 * self.dim**2)
