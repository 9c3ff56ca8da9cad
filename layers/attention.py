"""Softmax attention, causal, over all earlier positions or over a sliding window of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import Layer, positive, split_heads
from layers.rope import Rotary


@layers.register("attention", kind="sequence")
class Attention(Layer):
    """y = W_o softmax(q k^T / sqrt(d_head)) v, causal, with rotary positions on q and k.

    Vaswani et al. 2017 (arXiv 1706.03762); defaults of the MAD protocol: one head of width dim, biases.
    State: keys and values of all tokens, 2 dim T. FLOPs a token: 8 dim^2 + 4 T dim (the masked half counted too).
    """

    takes_rounded = True
    window: int | None = None  # visible keys, the query's own included; None: all

    def __init__(self, dim: int, max_length: int, *, num_heads: int = 1, rope: bool = True, bias: bool = True):
        super().__init__(dim, max_length)
        self.num_heads = num_heads
        self.head_dim = split_heads(dim, num_heads)
        self.rotary = Rotary(self.head_dim, max_length) if rope else None
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)  # (B, H, T, d)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        y = kernels.sliding_attention(q, k, v, self.window or self.max_length)
        return self.out(y.transpose(1, 2).flatten(2))

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (not yet rotated: positions may be counted from the oldest visible one) and values, (B, H, T, d)."""
        empty = self.zeros(batch, self.num_heads, 0, self.head_dim)
        return empty, empty

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        q, k, v = self.qkv(x_t).unflatten(-1, (3, self.num_heads, 1, self.head_dim)).permute(1, 0, 2, 3, 4)
        keys, values = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        if self.window is not None:
            keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
        self.check_tokens(keys.shape[2])
        state = keys, values
        if self.rotary is not None:
            q = self.rotary(q, torch.tensor([keys.shape[2] - 1], device=q.device))
            keys = self.rotary(keys)
        y = F.scaled_dot_product_attention(q, keys, values)
        return self.out(y.flatten(1)), state

    def visible(self, length: int) -> int:
        return length if self.window is None else min(self.window, length)

    def state_size(self, length: int) -> int:
        return 2 * self.dim * self.visible(length)

    def flops(self, length: int) -> int:
        return length * (8 * self.dim**2 + 4 * self.visible(length) * self.dim)


@layers.register("mh_attention", kind="sequence")
class MultiHeadAttention(Attention):
    """Attention with 16 heads, the MAD protocol's multi-head attention; the rest as in `attention`."""

    def __init__(self, dim: int, max_length: int, *, num_heads: int = 16, rope: bool = True, bias: bool = True):
        super().__init__(dim, max_length, num_heads=num_heads, rope=rope, bias=bias)


@layers.register("sliding_attention", kind="sequence")
class SlidingAttention(Attention):
    """Attention over the last `window` tokens, the query's own included.

    The MAD protocol's left window of 32 tokens shows 33 keys; hence the default. State: 2 dim min(window, T).
    FLOPs a token: 8 dim^2 + 4 window dim.

    A step counts positions from the oldest visible key, so where the window is no longer than max_length it goes on
    beyond that. Not by `kernels.sliding_step`: its ring holds all slots from the first token on, and a count of tokens,
    more than a window needs and is published to need; and keys rotated once, when written, would end where the table of
    positions does.
    """

    countable = False  # blocks of keys are computed whole, then masked

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        window: int = 33,
        num_heads: int = 1,
        rope: bool = True,
        bias: bool = True,
    ):
        super().__init__(dim, max_length, num_heads=num_heads, rope=rope, bias=bias)
        positive(window=window)
        self.window = window


@layers.register("mh_sliding_attention", kind="sequence")
class MultiHeadSlidingAttention(SlidingAttention):
    """Sliding attention with 16 heads; the rest as in `sliding_attention`."""

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        window: int = 33,
        num_heads: int = 16,
        rope: bool = True,
        bias: bool = True,
    ):
        super().__init__(dim, max_length, window=window, num_heads=num_heads, rope=rope, bias=bias)
