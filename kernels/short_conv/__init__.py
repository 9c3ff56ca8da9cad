"""Short causal depthwise convolution, any width."""

import torch

from kernels.checks import check_activation, check_whole, use_triton
from kernels.short_conv import reference
from kernels.short_conv.reference import STREAMS


def short_conv(
    u: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    input_bias: torch.Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """y[c, t] = activation(bias[c] + sum_j w[c, K - 1 - j] x[c mod H, t - j]), x = u + input_bias and zeros before the
    sequence (H3, arXiv 2212.14052; with SiLU as in Mamba, arXiv 2312.00752).

    Args:
        u: (B, H, L).
        w: (C, K) with C = r H: the order of conv1d, the last tap multiplies the current token; the outputs read the
            input channels r times over.
        bias: (C,).
        input_bias: (H,), for what comes from a linear map: added as u is read, without a pass over it.
        activation: None | "silu" | "gelu".
        backend: "auto" | "torch" | "triton".

    Returns:
        (B, C, L), of u's type; the taps are summed in fp32.

    Raises:
        ValueError: shapes that do not fit together, an unknown activation or backend.
    """
    options = {"input_bias": input_bias, "activation": activation, "backend": backend}
    return short_conv_streams(u, w, bias, streams=1, **options)[0]


def short_conv_streams(
    u: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    streams: int,
    input_bias: torch.Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, ...]:
    """`short_conv`, its outputs cut into `streams` equal parts, one to three: (B, C / streams, L) each.

    On a GPU each part is a tensor of its own and so is its gradient: nothing is copied to cut or to join them.
    """
    if activation is not None:
        check_activation(activation)
    if u.dim() != 3 or w.dim() != 2 or 0 in (u.shape[1], *w.shape) or w.shape[0] % u.shape[1]:
        raise ValueError(f"expected u (B, H, L) and w (r H, K), got {tuple(u.shape)} and {tuple(w.shape)}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"expected bias ({w.shape[0]},), got {tuple(bias.shape)}")
    if input_bias is not None and input_bias.shape != u.shape[1:2]:
        raise ValueError(f"expected input_bias ({u.shape[1]},), got {tuple(input_bias.shape)}")
    check_whole(streams=streams)
    if not 1 <= streams <= STREAMS or w.shape[0] % streams:
        raise ValueError(f"streams must be 1 to {STREAMS} and divide the {w.shape[0]} outputs, got {streams}")
    options = {"input_bias": input_bias, "activation": activation}
    if use_triton(backend, u, w, bias, input_bias):
        from kernels.short_conv import triton

        return tuple(triton.short_conv(u, w, bias, streams=streams, **options))
    return reference.short_conv(u, w, bias, **options).chunk(streams, dim=1)
