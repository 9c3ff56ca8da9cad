"""Multi-head Hyena: the long convolution of an outer product of keys and values, read by queries."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import kernels
import layers
from layers.base import Layer, split_heads
from layers.filters import build_filter
from layers.gated_projection import GatedProjection, fft_conv_flops, to_tokens


@layers.register("mh_hyena", kind="sequence")
class MultiHeadHyena(Layer):
    """y[t] = W_o q[t]^T (sum_s h[t - s] k[s] v[s]^T), one filter a head; q, k, v = short convolutions of linear maps.

    Massaroli et al. 2023 (MultiHyena, arXiv 2310.18780). As the filter is shared within a head, the convolution of the
    outer product equals ((q k^T) * H) v with H the filter's Toeplitz matrix: `kernels.toeplitz_attention`.

    Defaults of the MAD protocol: heads 16 wide, projections tied in groups of 4, a filter of width 2. State: keys and
    values, 2 dim T (the outer products themselves would be head_dim dim T), and the short convolutions' last inputs.
    FLOPs a token, nominal (of the convolution of P = head_dim dim channels): 6 dim^2 / 4 + 18 dim + 10 P log2 T + 5 P
    + 2 dim^2.
    """

    takes_rounded = True
    countable = False  # the long convolution is nominally an FFT

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        head_dim: int = 16,
        proj_groups: int = 4,
        filter: str | Mapping[str, Any] = "implicit",
        filter_order: int | None = None,
        kernel_size: int = 3,
    ):
        super().__init__(dim, max_length)
        self.head_dim, self.num_heads = head_dim, split_heads(dim, head_dim, option="head_dim")
        self.inputs = GatedProjection(dim, dim, groups=proj_groups, kernel_size=kernel_size)
        self.filter = build_filter(filter, self.num_heads, max_length, filter_order, usual=2)
        self.skip = nn.Parameter(torch.randn(self.num_heads))
        self.out = nn.Linear(dim, dim)

    def taps(self, length: int) -> torch.Tensor:
        """(heads, length), the direct path on tap 0."""
        h = self.filter(length)
        return torch.cat([h[:, :1] + self.skip.unsqueeze(-1), h[:, 1:]], dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        q, v, k = (s.unflatten(1, (self.num_heads, self.head_dim)).transpose(2, 3) for s in self.inputs(x))
        y = kernels.toeplitz_attention(q, k, v, self.taps(x.shape[1]))  # (B, H, T, P), as q, k, v; channel-first
        return to_tokens(self.out, y.transpose(2, 3).flatten(1, 2))

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The short convolutions' past, and the keys and values (B, dim, t), growing."""
        past = self.zeros(batch, self.inputs.narrow, self.inputs.kernel_size - 1)
        empty = self.zeros(batch, self.dim, 0)
        return past, empty, empty

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        (q, v, k), past = self.inputs.step(x_t, state[0])
        keys, values = torch.cat([state[1], k.unsqueeze(-1)], -1), torch.cat([state[2], v.unsqueeze(-1)], -1)
        self.check_tokens(keys.shape[-1])
        heads = (self.num_heads, self.head_dim)
        scores = (q.unflatten(1, heads).unsqueeze(-1) * keys.unflatten(1, heads)).sum(2)  # (B, H, t)
        weights = scores * self.taps(keys.shape[-1]).flip(-1)
        y = (weights.unsqueeze(2) * values.unflatten(1, heads)).sum(-1)  # (B, H, P), at least fp32 as the taps are
        return self.out(y.flatten(1).to(x_t.dtype)), (past, keys, values)

    def state_size(self, length: int) -> int:
        return self.inputs.past_size + 2 * self.dim * length

    def flops(self, length: int) -> int:
        outer = self.head_dim * self.dim  # channels of k v^T over all heads
        read = 5 * outer * length  # the outer product, the skip, the contraction with q
        return self.inputs.flops(length) + fft_conv_flops(outer, length) + read + 2 * self.dim**2 * length
