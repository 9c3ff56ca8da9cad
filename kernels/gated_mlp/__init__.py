"""The gated channel mixer of today's stacks (SwiGLU, GEGLU), whose hidden activations are not kept."""

import torch

from kernels.checks import check_activation, mixed, use_triton
from kernels.gated_mlp import reference

WIDEST = 128  # features in and out up to which a row's tiles fit beside the weights


def gated_mlp(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, *, activation: str = "silu", backend: str = "auto"
) -> torch.Tensor:
    """y = (activation(x gate^T) * (x value^T)) down^T, with up = [gate; value], weights as nn.Linear keeps them.

    Shazeer 2020 (GLU variants, arXiv 2002.05202): "silu" is SwiGLU, "gelu" is GEGLU. Under autocast, in its type.

    Args:
        x: (..., D).
        up: (2 W, D), the gate's rows first.
        down: (O, W).
        activation: "gelu" (exact) | "silu".
        backend: "auto" | "torch" | "triton". "auto" takes Triton for 16-bit data of at most 128 features in and out:
            there the hidden activations, eight times as wide in all, are most of what plain products move.

    Returns:
        (..., O), of x's type: products of operands rounded to it, sums in fp32. Triton keeps x alone for the backward,
        which computes the hidden activations again.

    Raises:
        ValueError: shapes that do not fit together, an unknown activation or backend, or backend="triton" for more
            than 128 features.
    """
    if up.dim() != 2 or down.dim() != 2 or up.shape != (2 * down.shape[1], *x.shape[-1:]):
        shapes = f"{tuple(x.shape)}, {tuple(up.shape)} and {tuple(down.shape)}"
        raise ValueError(f"expected x (..., D), up (2 W, D) and down (O, W), got {shapes}")
    check_activation(activation)
    x = mixed(x)
    features = max(x.shape[-1], down.shape[0])
    if use_triton(backend, x, up, down, width=features, widest=WIDEST if x.element_size() == 2 else 0):
        if features > WIDEST:
            raise ValueError(f"backend='triton' takes {WIDEST} features at most, got {features}; use backend='auto'")
        from kernels.gated_mlp import triton

        return triton.gated_mlp(x, up, down, activation=activation)
    return reference.gated_mlp(x, up, down, activation=activation)
