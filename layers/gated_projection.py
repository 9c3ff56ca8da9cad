"""The gated inputs that convolutional mixers share: a linear map to several streams and a short convolution on each.

Activations are kept channel-first, (C, B, T) in memory, from here to the output map: the products, the convolutions
and the gates then all read and write them without a transposing copy.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

import kernels
from layers.base import positive, split_heads


class GatedProjection(nn.Module):
    """x (B, T, dim) -> `streams` tensors (B, channels, T): short_conv(W x + b) + b', causal.

    With `groups` > 1 the map has only 1 / groups of the streams' channels as outputs, which these channels read over
    and over, each with taps of its own (the MAD protocol's tied projections). So a stream sees up to all the outputs,
    not a share of them, and neighbouring channels, those of a head, see different ones.
    """

    def __init__(self, dim: int, channels: int, *, streams: int = 3, groups: int = 1, kernel_size: int = 3):
        super().__init__()
        positive(kernel_size=kernel_size)
        split_heads(channels, groups, "channels", "proj_groups")
        self.streams, self.kernel_size = streams, kernel_size
        self.narrow = streams * channels // groups
        self.linear = nn.Linear(dim, self.narrow)
        self.taps = new_taps(kernel_size, streams * channels, kernel_size)
        self.bias = new_taps(kernel_size, streams * channels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # a GPU's convolution adds it as it reads z; before an operator, compiled code would write it to all of z first
        bias = self.linear.bias if x.is_cuda else None
        z = from_tokens(self.linear, x, biased=bias is None)  # (B, narrow, T)
        return kernels.short_conv_streams(z, self.taps, self.bias, streams=self.streams, input_bias=bias)

    def step(self, x_t: torch.Tensor, past: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """x_t (B, dim), past (B, narrow, K - 1) -> `streams` tensors (B, channels), and the next past."""
        window = torch.cat([past, self.linear(x_t).unsqueeze(-1)], dim=-1)
        now = kernels.short_conv(window, self.taps, self.bias)[..., -1]
        return now.chunk(self.streams, dim=1), window[..., 1:]

    @property
    def past_size(self) -> int:
        """Elements a sequence's past takes."""
        return self.narrow * (self.kernel_size - 1)

    def flops(self, length: int) -> int:
        return length * (2 * self.linear.weight.numel() + 2 * self.taps.numel())


def new_taps(kernel_size: int, *shape: int) -> nn.Parameter:
    """Initial taps, or bias, of a depthwise convolution: conv1d's own."""
    bound = kernel_size**-0.5
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def from_tokens(linear: nn.Linear, x: torch.Tensor, biased: bool = True) -> torch.Tensor:
    """linear(x) for x (B, T, dim) -> channel-first (B, C, T), (C, B, T) in memory; its bias may be left to others."""
    columns = x.flatten(0, 1).t()
    z = of_columns(linear, columns) if biased else linear.weight @ columns
    return z.view(len(linear.weight), *x.shape[:2]).transpose(0, 1)


def to_tokens(linear: nn.Linear, y: torch.Tensor) -> torch.Tensor:
    """linear(y) for channel-first y (B, C, T) -> (B, T, dim), as one product that reads y as it lies in memory, and
    gives it a gradient of the same layout. On a GPU its result is token-first, as the residual stream is."""
    batch, _, length = y.shape
    dim, columns = len(linear.weight), y.transpose(0, 1).flatten(1)  # (C, B T)
    if y.is_cuda:
        return F.linear(columns.t(), linear.weight, linear.bias).view(batch, length, dim)
    return of_columns(linear, columns).view(dim, batch, length).permute(1, 2, 0)


def of_columns(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """linear of x's columns, (inputs, N) -> (outputs, N)."""
    if linear.bias is None:
        return linear.weight @ x
    bias = linear.bias.unsqueeze(-1)
    if not x.is_cuda:
        return torch.addmm(bias, linear.weight, x)
    z = linear.weight @ x
    return z + bias.to(z.dtype)  # compiled code adds it with what comes next, if it can; `addmm` writes it to all of z


def convolution_step(past: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """The newest output of a long convolution: past (B, C, t), newest last, taps (C, t) -> (B, C), of past's type,
    summed in fp32."""
    return (kernels.wide(past) * taps.flip(-1)).sum(-1).to(past.dtype)


def fft_conv_flops(channels: int, length: int) -> int:
    """Nominal FLOPs of one long convolution by FFT, 10 L log2 L a channel, whatever algorithm runs."""
    return round(10 * channels * length * math.log2(max(1, length)))
