"""Convolutions as mixers: gated (BaseConv), short or long, and plain and short."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import kernels
import layers
from kernels.checks import check_activation
from layers.base import Layer, positive
from layers.filters import build_filter
from layers.gated_projection import convolution_step, fft_conv_flops, new_taps


class ShortConvolution(nn.Module):
    """Causal depthwise convolution with bias, (B, T, dim) -> (B, T, dim), and its recurrent form."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        positive(kernel_size=kernel_size)
        self.taps, self.bias = new_taps(kernel_size, dim, kernel_size), new_taps(kernel_size, dim)

    def forward(self, x: torch.Tensor, activation: str | None = None) -> torch.Tensor:
        return kernels.short_conv(x.transpose(1, 2), self.taps, self.bias, activation=activation).transpose(1, 2)

    def step(self, x_t: torch.Tensor, past: torch.Tensor, activation: str | None = None):
        """x_t (B, dim), past (B, K - 1, dim) -> (B, dim), next past."""
        window = torch.cat([past, x_t.unsqueeze(1)], dim=1)
        return self(window, activation)[:, -1], window[:, 1:]

    def past_size(self, length: int) -> int:
        """Elements of the past after `length` tokens."""
        return self.taps.numel() - len(self.taps)

    def flops(self, length: int) -> int:
        return 2 * length * self.taps.numel()


class LongConvolution(nn.Module):
    """y = h conv x + x, causal, as long as the sequence, (B, T, dim) -> (B, T, dim), and its recurrent form."""

    def __init__(self, dim: int, max_length: int, filter: str | Mapping[str, Any]):
        super().__init__()
        self.dim, self.filter = dim, build_filter(filter, dim, max_length)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.fft_conv(x.transpose(1, 2), self.filter(x.shape[1])).transpose(1, 2) + x

    def step(self, x_t: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (B, dim), past (B, dim, t) -> (B, dim), next past (B, dim, t + 1)."""
        past = torch.cat([past, x_t.unsqueeze(-1)], dim=-1)
        return convolution_step(past, self.filter(past.shape[-1])) + x_t, past

    def past_size(self, length: int) -> int:
        """Elements of the past after `length` tokens."""
        return self.dim * length

    def flops(self, length: int) -> int:
        return fft_conv_flops(self.dim, length) + self.dim * length


@layers.register("base_conv", kind="sequence")
class BaseConv(Layer):
    """y = conv(x) * (W x + b) + x, a causal convolution gated by a linear map.

    Arora et al. 2023 (Zoology, arXiv 2312.04927), with the inner residual of BASED (arXiv 2402.18668). The convolution
    is short, or with a `filter` as long as the sequence (then h conv x + x); Zoology has them in turn, and no inner
    residual. State: (kernel_size - 1) dim; long, dim T. FLOPs a token: 2 dim^2, and 2 kernel_size dim or 10 dim log2 T
    + dim.

    Args:
        kernel_size: taps of the short convolution.
        filter: of a long one in its place, "implicit", "rtf", or a mapping of the name and its options.
        residual: add x.
    """

    countable = False  # the convolution is not a matmul here, and torch's counter does not see it

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        kernel_size: int = 3,
        filter: str | Mapping[str, Any] | None = None,
        residual: bool = True,
    ):
        super().__init__(dim, max_length)
        self.residual = residual
        self.conv = ShortConvolution(dim, kernel_size) if filter is None else LongConvolution(dim, max_length, filter)
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        return self.gated(self.conv(x), x)

    def gated(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = y * self.linear(x)
        return y + x if self.residual else y

    def init_state(self, batch: int) -> tuple[torch.Tensor]:
        if isinstance(self.conv, LongConvolution):
            return (self.zeros(batch, self.dim, 0),)
        return (self.zeros(batch, self.conv.taps.shape[1] - 1, self.dim),)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        if isinstance(self.conv, LongConvolution):
            self.check_tokens(state[0].shape[-1] + 1)
        y, past = self.conv.step(x_t, state[0])
        return self.gated(y, x_t), (past,)

    def state_size(self, length: int) -> int:
        return self.conv.past_size(length)

    def flops(self, length: int) -> int:
        return length * 2 * self.dim**2 + self.conv.flops(length)


@layers.register("short_conv", kind="sequence")
class ShortConv(Layer):
    """y = silu(conv(x)), a causal depthwise convolution.

    The mixer between attention layers of BASED's language models (Arora et al. 2024, arXiv 2402.18668). State:
    (kernel_size - 1) dim. FLOPs a token: 2 kernel_size dim.
    """

    countable = False  # no matmul in it

    def __init__(self, dim: int, max_length: int, *, kernel_size: int = 3, activation: str | None = "silu"):
        super().__init__(dim, max_length)
        if activation is not None:
            check_activation(activation)
        self.conv, self.activation = ShortConvolution(dim, kernel_size), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        return self.conv(x, self.activation)

    def init_state(self, batch: int) -> tuple[torch.Tensor]:
        return (self.zeros(batch, self.conv.taps.shape[1] - 1, self.dim),)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        y, past = self.conv.step(x_t, state[0], self.activation)
        return y, (past,)

    def state_size(self, length: int) -> int:
        return self.conv.past_size(length)

    def flops(self, length: int) -> int:
        return self.conv.flops(length)
