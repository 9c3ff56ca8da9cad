"""Short causal depthwise convolution, any width."""

import torch

from kernels.checks import check_activation, use_triton
from kernels.short_conv import reference


def short_conv(
    u: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """y[c, t] = activation(bias[c] + sum_j w[c, K - 1 - j] u[c // r, t - j]), zeros before the sequence (H3,
    arXiv 2212.14052; with SiLU as in Mamba, arXiv 2312.00752).

    Args:
        u: (B, H, L).
        w: (C, K) with C = r H: the order of conv1d, the last tap multiplies the current token; r outputs read each
            input channel (conv1d's channel multiplier).
        bias: (C,).
        activation: None | "silu" | "gelu".
        backend: "auto" | "torch" | "triton".

    Returns:
        (B, C, L), of u's type; Triton sums the taps in fp32.

    Raises:
        ValueError: shapes that do not fit together, an unknown activation or backend.
    """
    if activation is not None:
        check_activation(activation)
    if u.dim() != 3 or w.dim() != 2 or w.shape[0] % u.shape[1]:
        raise ValueError(f"expected u (B, H, L) and w (r H, K), got {tuple(u.shape)} and {tuple(w.shape)}")
    if use_triton(backend, u, w, bias):
        from kernels.short_conv import triton

        return triton.short_conv(u, w, bias, activation=activation)
    return reference.short_conv(u, w, bias, activation=activation)
