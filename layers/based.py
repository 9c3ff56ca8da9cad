"""BASED's linear attention: the second-order Taylor polynomial of softmax's exponential."""

from typing import Any

import torch

import kernels
import layers
from layers.linear_attention import LinearAttention


@layers.register("based", kind="sequence")
class Based(LinearAttention):
    """Linear attention with Taylor feature maps of narrow queries and keys.

    Arora et al. 2024 (arXiv 2402.18668); formula and normalisation: `kernels.taylor_attention`. Defaults of Zoology:
    one head, queries and keys 16 wide. State a head: F (dv + 1) with the F = (f + 1)(f + 2) / 2 different features of a
    width f, 153 of 273 at 16. FLOPs a token: 4 dim (num_heads f + dim) + 4 F dv a head.
    """

    def __init__(self, dim: int, max_length: int, *, num_heads: int = 1, feature_dim: int = 16, eps: float = 1e-12):
        super().__init__(dim, max_length, num_heads=num_heads, feature_map="taylor", feature_dim=feature_dim, eps=eps)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return kernels.taylor_attention(q, k, v, eps=self.eps)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        q, k, v = (t.squeeze(2) for t in self.heads(x_t.unsqueeze(1), None))
        y, total = kernels.taylor_step(q, k, v, state[0], eps=self.eps)
        return self.out(y.flatten(1)), (total,)
