"""Mixtures of experts as channel mixers: sparse, and as the MAD protocol's published code has them."""

import torch
import torch.nn.functional as F
from torch import nn

import layers
from layers.base import ChannelMixer, positive
from layers.routing import Dispatch, Router


@layers.register("moe", kind="channel")
class MoE(ChannelMixer):
    """y = sum over the top k experts e of p_e SwiGLU_e(x), p = softmax of the k highest router scores.

    Sizes of the MAD protocol: 8 experts of width 16, top 2; the other experts are neither computed nor weighted. The
    published code's mixture is `dense_moe`. FLOPs a token: 2 dim num_experts + 6 top_k dim width.
    """

    linear_maps = ("up", "down")
    countable = False  # blocks of slots are filled up with zeros

    def __init__(self, dim: int, max_length: int, *, num_experts: int = 8, top_k: int = 2, width: int = 16):
        super().__init__(dim, max_length)
        positive(width=width)
        self.router, self.width = Router(dim, num_experts, top_k), width
        up, down = dim**-0.5, width**-0.5
        self.up = nn.Parameter(torch.empty(num_experts, dim, 2 * width).uniform_(-up, up))
        self.down = nn.Parameter(torch.empty(num_experts, width, dim).uniform_(-down, down))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_shape(x)
        tokens = x.flatten(0, 1)  # (N, dim)
        weights, experts = self.router(tokens)
        dispatch = Dispatch(experts, self.router.num_experts)
        gate, value = dispatch.multiply(dispatch.gather(tokens), self.up).chunk(2, dim=-1)
        y = dispatch.scatter(dispatch.multiply(F.silu(gate) * value, self.down))  # (N, k, dim)
        return (y * weights.unsqueeze(-1)).sum(1).view_as(x)

    def active_params(self) -> int:
        return super().active_params() - self.router.idle(self.up, self.down)

    def flops(self, length: int) -> int:
        return length * self.dim * (2 * self.router.num_experts + 6 * self.router.top_k * self.width)


@layers.register("dense_moe", kind="channel")
class DenseMoE(ChannelMixer):
    """y = sum over all experts e of p_e W_e h, h = (U x) * gelu(V x) with num_experts width features, tanh GELU.

    The mixture of the MAD protocol's published code (Poli et al. 2024, arXiv 2403.17844), dense but for its name: every
    expert reads the hidden features of all, and p, a softmax over the k highest scores and zeros in place of the rest,
    leaves none out. FLOPs a token, h = num_experts width: 2 dim num_experts + 4 dim h + 2 dim num_experts h.
    """

    def __init__(self, dim: int, max_length: int, *, num_experts: int = 8, top_k: int = 2, width: int = 16):
        super().__init__(dim, max_length)
        positive(width=width)
        self.router = Router(dim, num_experts, top_k, bias=True)
        hidden = num_experts * width
        self.up, self.down = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim * num_experts, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_shape(x)
        value, gate = self.up(x).chunk(2, dim=-1)
        y = self.down(value * F.gelu(gate, approximate="tanh")).unflatten(-1, (self.dim, -1))  # (B, T, dim, E)
        weights = self.router.of_all(x.flatten(0, 1)).view(*x.shape[:2], 1, self.router.num_experts)
        return (y * weights).sum(-1)

    def flops(self, length: int) -> int:
        maps = self.router.scores.weight.numel() + self.up.weight.numel() + self.down.weight.numel()
        return 2 * length * maps
