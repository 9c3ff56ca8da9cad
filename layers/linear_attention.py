"""Linear attention: any feature map in place of softmax's exponential, a state of fixed size."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import kernels
import layers
from layers.base import Layer, positive, split_heads
from layers.feature_maps import build_map
from layers.rope import Rotary
from mad.registry import is_number


@layers.register("linear_attention", kind="sequence")
class LinearAttention(Layer):
    """y[t] = W_o (sum_{s<=t} phi(q_t).psi(k_s) v_s) / (sum_{s<=t} phi(q_t).psi(k_s) + eps).

    Katharopoulos et al. 2020 (arXiv 2006.16236); defaults of the MAD protocol: one head, Hadamard feature maps,
    projections without bias. A learned map is two, one for queries and one for keys; a fixed one is shared. State a
    head: F (dv + 1) with F features, without normalisation F dv; and one position where the map or `rope` needs it.
    FLOPs a token: 8 dim^2 for the default widths, the maps', and 4 F dv a head.

    Args:
        feature_map: a name of `layers.feature_maps`, or a mapping of the name and its options.
        feature_dim: width of a head's queries and keys; None: that of its values, dim / num_heads.
        normalize: divide by the sum of the weights.
        rope: rotary positions before the maps.
    """

    countable = False  # its two algorithms cost differently; `flops` is the recurrence's

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        num_heads: int = 1,
        feature_map: str | Mapping[str, Any] = "hadamard",
        feature_dim: int | None = None,
        normalize: bool = True,
        rope: bool = False,
        eps: float = 1e-12,
    ):
        super().__init__(dim, max_length)
        self.num_heads, self.normalize, self.eps = num_heads, normalize, eps
        self.head_dim = split_heads(dim, num_heads)
        self.feature_dim = self.head_dim if feature_dim is None else feature_dim
        positive(feature_dim=self.feature_dim)
        if not is_number(eps) or eps < 0:
            raise ValueError(f"eps must be a finite number of at least 0, got {eps!r}")
        self.rotary = Rotary(self.feature_dim, max_length) if rope else None
        self.q, self.k = (nn.Linear(dim, num_heads * self.feature_dim, bias=False) for _ in range(2))
        self.v, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.q_map = self.k_map = build_map(feature_map, self.feature_dim, num_heads, max_length)
        if any(True for _ in self.q_map.parameters()):
            self.k_map = build_map(feature_map, self.feature_dim, num_heads, max_length)
        self.positional = rope or self.q_map.positional

    def heads(self, x: torch.Tensor, positions: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x (B, T, dim) -> q, k before the maps (B, H, T, d), v (B, H, T, dv)."""
        q, k, v = (f(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.rotary is not None:
            positions = None if positions is None else positions.long()
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        return q, k, v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        positions = torch.arange(x.shape[1], device=x.device)
        q, k, v = self.heads(x, None)
        return self.out(self.attend(q, k, v, positions).transpose(1, 2).flatten(2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """q, k before the maps, v (B, H, T, dv) -> (B, H, T, dv)."""
        q, k = self.q_map(q, positions), self.k_map(k, positions)
        return kernels.linear_attention(q, k, v, normalize=self.normalize, eps=self.eps)

    def init_state(self, batch: int) -> tuple[torch.Tensor, ...]:
        """The sum of features times values (B, H, F, dv), where normalised with a column of ones (dv + 1) for the sum
        of the features; and the position (B,) where one is needed."""
        state = self.zeros(batch, self.num_heads, self.q_map.size, self.head_dim + self.normalize)
        state = kernels.wide(state)
        return (state, state.new_zeros(batch)) if self.positional else (state,)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        total, *position = state
        if position and (position[0] >= self.max_length).any():  # on a GPU an index too high would end the process
            self.check_tokens(self.max_length + 1)
        positions = position[0].view(-1, 1, 1) if position else torch.zeros(1, device=x_t.device)
        q, k, v = self.heads(x_t.unsqueeze(1), positions)
        q, k = self.q_map(q, positions).to(total.dtype), self.k_map(k, positions).to(total.dtype)  # (B, H, 1, F)
        v = v.to(total.dtype)
        if self.normalize:
            v = nn.functional.pad(v, (0, 1), value=1.0)
        total = total + k.transpose(2, 3) * v
        y = q @ total  # (B, H, 1, dv)
        if self.normalize:
            y = y[..., :-1] / (y[..., -1:] + self.eps)
        return self.out(y.to(x_t.dtype).flatten(1)), (total, *(p + 1 for p in position))

    def state_size(self, length: int) -> int:
        return self.num_heads * self.q_map.size * (self.head_dim + self.normalize) + self.positional

    def flops(self, length: int) -> int:
        projections = 4 * self.dim * (self.num_heads * self.feature_dim + self.dim)
        maps = self.num_heads * (self.q_map.flops() + self.k_map.flops())
        return length * (projections + maps + 4 * self.num_heads * self.q_map.size * self.head_dim)


@layers.register("mh_linear_attention", kind="sequence")
class MultiHeadLinearAttention(LinearAttention):
    """Linear attention with 16 heads, the MAD protocol's; the rest as in `linear_attention`."""

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        num_heads: int = 16,
        feature_map: str | Mapping[str, Any] = "hadamard",
        normalize: bool = True,
        rope: bool = False,
        eps: float = 1e-12,
    ):
        super().__init__(
            dim, max_length, num_heads=num_heads, feature_map=feature_map, normalize=normalize, rope=rope, eps=eps
        )
