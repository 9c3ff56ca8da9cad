"""Implicit filters in plain torch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kernels.checks import as_given

NARROW = 16  # inputs


def implicit_filter(
    position: torch.Tensor,
    frequency: torch.Tensor,
    hidden: Sequence[tuple[torch.Tensor, torch.Tensor]],
    out: torch.Tensor,
    decay: torch.Tensor,
) -> torch.Tensor:
    """See kernels.implicit_filter. Not in less than fp32: the sines would see rounded angles."""
    tensors = (position, frequency, *(t for layer in hidden for t in layer), out, decay)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    steps = torch.arange(len(position), device=decay.device, dtype=dtype)  # bf16 counts to 256
    with as_given(position):
        z, frequency, *maps, out, decay = (t.to(dtype) for t in tensors)
        for weight, bias in zip(maps[::2], maps[1::2], strict=True):
            z = torch.sin(frequency * product(z, weight, bias))
        return product(z, out).t() * torch.exp(-decay.unsqueeze(-1) * steps)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b. On a GPU a product of few inputs is a sum of their multiples: that is fused with what stands around
    it, where a matrix product this narrow is a launch of its own."""
    if not x.is_cuda or weight.shape[1] > NARROW:
        return F.linear(x, weight, bias)
    y = (x.unsqueeze(-1) * weight.t()).sum(1)  # (L, outputs)
    return y if bias is None else y + bias
