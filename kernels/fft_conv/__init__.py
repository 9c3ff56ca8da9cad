"""Long causal convolution, gated: the heart of Hyena, RTF and Monarch Mixer."""

import torch

from kernels.checks import check_backend
from kernels.fft_conv import reference


def fft_conv(
    u: torch.Tensor,
    k: torch.Tensor,
    *,
    skip: torch.Tensor | None = None,
    pre_gate: torch.Tensor | None = None,
    post_gate: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """y[t] = post_gate[t] * (sum_j k[j] w[t - j] + skip w[t]) with w = pre_gate * u, per batch row and channel.

    Args:
        u: (B, H, L).
        k: (H, K); k[:, j] multiplies the token j steps back. Taps beyond L have no effect.
        skip: (H,), a direct path beside the convolution.
        pre_gate, post_gate: (B, H, L).
        backend: "auto" | "torch".

    Returns:
        (B, H, L), of u's type. The convolution is computed in fp32, or in fp64 where u is fp64.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    check_backend(backend)
    if u.dim() != 3 or k.dim() != 2 or k.shape[0] != u.shape[1]:
        raise ValueError(f"expected u (B, H, L) and k (H, K), got {tuple(u.shape)} and {tuple(k.shape)}")
    return reference.fft_conv(u, k, skip=skip, pre_gate=pre_gate, post_gate=post_gate)
