"""Long-convolution filters: modules that give the taps (channels, length) of a causal convolution.

A filter is built for `max_length` tokens; `filter(length)` are its first `length` taps, whatever that length, so that
a layer's output never depends on how long the sequence is that it stands in.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import kernels
from layers.base import above_zero, positive
from mad.registry import Registry

registry = Registry("filter")


def build_filter(
    spec: str | Mapping[str, Any],
    channels: int,
    max_length: int,
    filter_order: int | None = None,
    usual: int | None = None,
) -> nn.Module:
    """Build the filter `spec`, a name or a mapping of name and options.

    Args:
        filter_order: the layer's own option; None: `usual`, where the filter has such an option at all.
        usual: None: the filter's own.

    Raises:
        ValueError: the filter, an option or a value does not exist; two values of filter_order.
    """
    name, options = registry.resolve(spec)
    if filter_order is not None and options.get("filter_order", filter_order) != filter_order:
        raise ValueError(f"filter_order={filter_order} beside a filter with {options}; expected it in one place")
    if filter_order is None and name in registry.names() and "filter_order" in registry.options(name):
        filter_order = usual
    own = {} if filter_order is None else {"filter_order": filter_order}
    return registry.build(name, channels, max_length, **own | options)


@registry.register("implicit")
class ImplicitFilter(nn.Module):
    """h_c[t] = exp(-|decay_c| t / max_length) * MLP_c(position code of t), the MLP with sine activations.

    Poli et al. 2023 (Hyena, arXiv 2302.10866), section 3.3. The position code (t, cos, sin) is a table and trained, as
    in the MAD protocol. The decays are fixed and spread over the channels, so that a channel forgets to 1 % of the tap
    within 0.3 to 1.5 of max_length.

    Args:
        filter_order: width of the MLP.
        emb_dim: size of the position code, odd.
        sine_frequency: where the trained frequencies of the sines start; 1 in the MAD protocol, 10 in M2-BERT.
    """

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        filter_order: int = 4,
        emb_dim: int = 3,
        sine_frequency: float = 1.0,
    ):
        super().__init__()
        positive(filter_order=filter_order, emb_dim=emb_dim)
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3 (t, and cos and sin of each band), got {emb_dim}")
        above_zero(sine_frequency=sine_frequency)
        t = torch.linspace(0, 1, max_length).unsqueeze(-1)  # (L, 1)
        bands = torch.linspace(1e-4, (emb_dim - 1) // 2 - 1, (emb_dim - 1) // 2)
        angles = 2 * math.pi * torch.arange(max_length).unsqueeze(-1) / max_length * bands
        self.position = nn.Parameter(torch.cat([t, angles.cos(), -angles.sin()], dim=-1))  # (L, emb_dim)
        self.frequency = nn.Parameter(sine_frequency * torch.ones(filter_order))
        self.hidden: Any = nn.ModuleList(nn.Linear(n, filter_order) for n in (emb_dim, filter_order, filter_order))
        self.out = nn.Linear(filter_order, channels, bias=False)
        slowest, fastest = math.log(100) / 1.5, math.log(100) / 0.3
        self.decay: torch.Tensor
        self.register_buffer("decay", torch.linspace(slowest, fastest, channels) / max(1, max_length - 1))

    def forward(self, length: int) -> torch.Tensor:
        if length > len(self.position):
            raise ValueError(f"the filter was built for max_length={len(self.position)}, got {length} tokens")
        position = self.position if length == len(self.position) else self.position[:length]
        hidden = [(linear.weight, linear.bias) for linear in self.hidden]
        return kernels.implicit_filter(position, self.frequency, hidden, self.out.weight, self.decay)
