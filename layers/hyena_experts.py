"""Hyena experts: mixtures whose experts are narrow Hyena operators, sparse and as the published MAD code has them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import kernels
import layers
from layers.base import Layer, split_heads
from layers.convolution import ShortConvolution
from layers.filters import build_filter
from layers.gated_projection import convolution_step, fft_conv_flops
from layers.routing import Dispatch, Router


@layers.register("hyena_experts", kind="sequence")
class HyenaExperts(Layer):
    """y = W_o sum over the top k experts e of p_e Hyena_e(x), p = softmax of the k highest router scores.

    Poli et al. 2024 (MAD, arXiv 2403.17844): 8 experts of width dim / 8, top 2; every eighth channel is of one expert,
    so that each has filters that forget fast and slowly. A token is projected by its own experts only, and enters and
    leaves only them; to the others it is a zero. The published code's mixture is `dense_hyena_experts`. State: the
    convolutions' inputs, dim T, the routed projections' last ones. FLOPs a token, w = dim / num_experts:
    2 dim num_experts + 6 top_k dim w + 18 dim + 10 dim log2 T + 4 dim + 2 top_k w + 2 w dim.
    """

    linear_maps = ("weight",)
    countable = False  # the long convolution is nominally an FFT

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        num_experts: int = 8,
        top_k: int = 2,
        filter: str | Mapping[str, Any] = "implicit",
        filter_order: int | None = None,
        kernel_size: int = 3,
    ):
        super().__init__(dim, max_length)
        self.width = split_heads(dim, num_experts, option="num_experts")
        self.router = Router(dim, num_experts, top_k, bias=True)
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(num_experts, dim, 3 * self.width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_experts, 3 * self.width))
        self.conv = ShortConvolution(3 * dim, kernel_size)
        self.filter = build_filter(filter, dim, max_length, filter_order, usual=16)
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(self.width, dim)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (N, dim) -> the three streams of all channels (N, 3 dim), zero where a token is not routed; the mixing
        weights of the experts (N, E), zero likewise."""
        chosen, experts = self.router(x)
        dispatch = Dispatch(experts, self.router.num_experts)
        own = dispatch.scatter(dispatch.multiply(dispatch.gather(x), self.weight))  # (N, k, 3 w)
        routed = (experts.unsqueeze(-1) == torch.arange(self.router.num_experts, device=x.device)).to(own.dtype)
        bias = self.bias.t().to(own.dtype)
        z = torch.einsum("nkw,nke->nwe", own, routed) + routed.sum(1).unsqueeze(1) * bias  # (N, 3 w, E)
        mix = torch.einsum("nk,nke->ne", chosen.to(own.dtype), routed)
        return z.flatten(1), mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        z, mix = self.project(x.flatten(0, 1))
        z = z.unflatten(0, x.shape[:2]).transpose(1, 2).contiguous()  # tokens are neighbours for the convolutions
        x0, x1, v = kernels.short_conv_streams(z, self.conv.taps, self.conv.bias, streams=3)  # (B, dim, T)
        y = kernels.fft_conv(v, self.filter(x.shape[1]), skip=self.skip, pre_gate=x1, post_gate=x0)
        y = y.transpose(1, 2).flatten(0, 1).unflatten(-1, (self.width, self.router.num_experts))  # (N, w, E)
        return self.out((y * mix.unsqueeze(1)).sum(-1)).view_as(x)

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The short convolutions' past (B, K - 1, 3 dim), and the long one's (B, dim, t), growing."""
        return self.zeros(batch, self.conv.taps.shape[1] - 1, 3 * self.dim), self.zeros(batch, self.dim, 0)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        z, mix = self.project(x_t)
        z, past = self.conv.step(z, state[0])
        x0, x1, v = z.chunk(3, dim=-1)
        w = torch.cat([state[1], (x1 * v).unsqueeze(-1)], dim=-1)
        self.check_tokens(w.shape[-1])
        y = x0 * (convolution_step(w, self.filter(w.shape[-1])) + self.skip * w[..., -1])
        y = y.unflatten(-1, (self.width, self.router.num_experts))
        return self.out((y * mix.unsqueeze(1)).sum(-1)), (past, w)

    def state_size(self, length: int) -> int:
        return 3 * self.dim * (self.conv.taps.shape[1] - 1) + self.dim * length

    def active_params(self) -> int:
        """The convolutions run over all channels, so only the input map's experts count by the top k."""
        return super().active_params() - self.router.idle(self.weight, self.bias)

    def flops(self, length: int) -> int:
        router = 2 * self.dim * self.router.num_experts
        routed = self.router.top_k * (6 * self.dim * self.width + 2 * self.width)
        dense = 2 * self.conv.taps.numel() + 4 * self.dim + 2 * self.width * self.dim
        return length * (router + routed + dense) + fft_conv_flops(self.dim, length)


@layers.register("dense_hyena_experts", kind="sequence")
class DenseHyenaExperts(HyenaExperts):
    """Hyena experts that all see every token, and all have a weight: a softmax over the k highest scores and zeros in
    place of the others, as in the MAD protocol's published code.

    State: the convolutions' inputs, dim T, the projections' last ones. FLOPs a token, w = dim / num_experts:
    2 dim num_experts + 6 dim^2 + 18 dim + 10 dim log2 T + 4 dim + 2 dim + 2 w dim.
    """

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.einsum("nd,edw->nwe", x, self.weight)  # (N, 3 w, E)
        return (z + self.bias.t().to(z.dtype)).flatten(1), self.router.of_all(x).to(z.dtype)

    def active_params(self) -> int:
        return Layer.active_params(self)

    def flops(self, length: int) -> int:
        router = 2 * self.dim * self.router.num_experts
        dense = 2 * self.weight.numel() + 2 * self.conv.taps.numel() + 6 * self.dim + 2 * self.width * self.dim
        return length * (router + dense) + fft_conv_flops(self.dim, length)
