"""Hyena: gated long convolutions with implicit filters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import kernels
import layers
from layers.base import Layer, positive
from layers.filters import build_filter
from layers.gated_projection import GatedProjection, convolution_step, fft_conv_flops, to_tokens


@layers.register("hyena", kind="sequence")
class Hyena(Layer):
    """y = W_o (x0 * (h conv (x1 * v) + D (x1 * v))), with x0, x1, v = short convolutions of linear maps of x.

    Poli et al. 2023 (arXiv 2302.10866), order 2. Defaults of the MAD protocol: 4 dim channels whose projections are
    tied in groups of 4, an implicit filter of width 4. State: the convolution's inputs, 4 dim T, and the short
    convolutions' last inputs. FLOPs a token, with C = 4 dim channels: 6 C dim / 4 + 18 C + 10 C log2 T + 4 C + 2 C dim.

    Args:
        expansion: channels of the convolution, in units of dim.
        proj_groups: channels that share one output of the input map.
        filter: "implicit", "rtf", or a mapping of the name and its options.
        filter_order: width of the implicit filter's MLP; None: 4.
        kernel_size: taps of the short convolutions.
    """

    takes_rounded = True
    countable = False  # the long convolution is nominally an FFT

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        expansion: int = 4,
        proj_groups: int = 4,
        filter: str | Mapping[str, Any] = "implicit",
        filter_order: int | None = None,
        kernel_size: int = 3,
    ):
        super().__init__(dim, max_length)
        positive(expansion=expansion)
        self.channels = expansion * dim
        self.inputs = GatedProjection(dim, self.channels, groups=proj_groups, kernel_size=kernel_size)
        self.filter = build_filter(filter, self.channels, max_length, filter_order)
        self.skip = nn.Parameter(torch.randn(self.channels))
        self.out = nn.Linear(self.channels, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        x0, x1, v = self.inputs(x)  # (B, C, T)
        y = kernels.fft_conv(v, self.filter(x.shape[1]), skip=self.skip, pre_gate=x1, post_gate=x0)
        return to_tokens(self.out, y)

    def init_state(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The short convolutions' past (B, narrow, K - 1), and the long one's (B, C, t), growing."""
        past = self.zeros(batch, self.inputs.narrow, self.inputs.kernel_size - 1)
        return past, self.zeros(batch, self.channels, 0)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        (x0, x1, v), past = self.inputs.step(x_t, state[0])
        w = torch.cat([state[1], (x1 * v).unsqueeze(-1)], dim=-1)  # (B, C, t + 1)
        self.check_tokens(w.shape[-1])
        y = convolution_step(w, self.filter(w.shape[-1])) + self.skip * w[..., -1]
        return self.out(x0 * y), (past, w)

    def state_size(self, length: int) -> int:
        return self.inputs.past_size + self.channels * length

    def flops(self, length: int) -> int:
        pointwise = 4 * self.channels * length  # two gates, and the skip
        out = 2 * self.channels * self.dim * length
        return self.inputs.flops(length) + fft_conv_flops(self.channels, length) + pointwise + out
