"""Hedgehog: linear attention whose learned feature maps mimic softmax."""

import torch

import kernels
import layers
from layers.linear_attention import LinearAttention


@layers.register("hedgehog", kind="sequence")
class Hedgehog(LinearAttention):
    """Linear attention with features [softmax(x W), softmax(-x W)], W for each head, queries and keys apart.

    Zhang et al. 2024 (arXiv 2402.04347). Rotary positions come before the maps, as in the attention it replaces. State:
    2 dim (dim / num_heads + 1) and a position; with 8 heads at dim 128 that is 4,353, near the MAD protocol's 2,048 to
    4,096 a layer. FLOPs a token: 8 dim^2 + 12 dim^2 / num_heads.
    """

    def __init__(self, dim: int, max_length: int, *, num_heads: int = 8, rope: bool = True, eps: float = 1e-12):
        super().__init__(dim, max_length, num_heads=num_heads, feature_map="hedgehog", rope=rope, eps=eps)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return kernels.hedgehog_attention(q, k, v, self.q_map.weight, self.k_map.weight, eps=self.eps)
