"""Short causal depthwise convolution, any width."""

import torch
import torch.nn.functional as F

from kernels.checks import check_backend
from kernels.short_conv import reference
from mad.registry import unknown

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu}


def short_conv(
    u: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """y[c, t] = activation(bias[c] + sum_j w[c, K - 1 - j] u[c // r, t - j]), zeros before the sequence.

    Args:
        u: (B, H, L).
        w: (C, K) with C = r H: the order of conv1d, the last tap multiplies the current token; r outputs read each
            input channel (conv1d's channel multiplier).
        bias: (C,).
        activation: None | "silu" | "gelu".
        backend: "auto" | "torch".

    Returns:
        (B, C, L).

    Raises:
        ValueError: shapes that do not fit together, an unknown activation or backend.
    """
    check_backend(backend)
    if activation is not None and activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if u.dim() != 3 or w.dim() != 2 or w.shape[0] % u.shape[1]:
        raise ValueError(f"expected u (B, H, L) and w (r H, K), got {tuple(u.shape)} and {tuple(w.shape)}")
    y = reference.short_conv(u, w.to(u.dtype), None if bias is None else bias.to(u.dtype))
    return y if activation is None else ACTIVATIONS[activation](y)
