"""Implicit filters in plain torch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kernels.checks import wide


def implicit_filter(
    position: torch.Tensor,
    frequency: torch.Tensor,
    hidden: Sequence[tuple[torch.Tensor, torch.Tensor]],
    out: torch.Tensor,
    decay: torch.Tensor,
) -> torch.Tensor:
    """See kernels.implicit_filter. Not in less than fp32: the sines would see rounded angles."""
    decay = wide(decay)
    steps = torch.arange(len(position), device=decay.device, dtype=decay.dtype)  # bf16 counts to 256
    with torch.autocast(position.device.type, enabled=False):
        z = wide(position)
        for weight, bias in hidden:
            z = torch.sin(frequency * F.linear(z, wide(weight), wide(bias)))
        return F.linear(wide(z), wide(out)).t() * torch.exp(-decay.unsqueeze(-1) * steps)
