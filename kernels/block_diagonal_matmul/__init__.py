"""Products with block-diagonal matrices: Monarch Mixer's channel mixing, one Monarch factor, plain or gated."""

import torch

from kernels.block_diagonal_matmul import reference
from kernels.checks import check_activation, mixed, use_triton


def block_diagonal_matmul(x: torch.Tensor, w: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Block g of the features is multiplied by w[g] alone.

    Fu et al. 2023 (Monarch Mixer, arXiv 2310.12109).

    Args:
        x: (..., G * I).
        w: (G, I, O).
        backend: "auto" | "torch" | "triton".

    Returns:
        (..., G * O), of x's type, under autocast of its: products of w rounded to it, sums in fp32.

    Raises:
        ValueError: x's last dimension is not G * I, or an unknown backend.
    """
    check(x, w)
    x = mixed(x)
    if use_triton(backend, x, w):
        from kernels.block_diagonal_matmul import triton

        return triton.block_diagonal_matmul(x, w)
    return reference.block_diagonal_matmul(x, w)


def block_diagonal_glu(
    x: torch.Tensor, gate: torch.Tensor, value: torch.Tensor, *, activation: str = "gelu", backend: str = "auto"
) -> torch.Tensor:
    """activation(x gate) * (x value) with block-diagonal gate and value, in one pass over x.

    Fu et al. 2023 (Monarch Mixer, arXiv 2310.12109).

    Args:
        x: (..., G * I).
        gate, value: (G, I, O).
        activation: "gelu" (exact) | "silu".
        backend: "auto" | "torch" | "triton".

    Returns:
        (..., G * O), of x's type, under autocast of its.

    Raises:
        ValueError: shapes that do not fit together, an unknown activation or backend.
    """
    check(x, gate)
    if gate.shape != value.shape:
        raise ValueError(f"expected gate and value of one shape, got {tuple(gate.shape)} and {tuple(value.shape)}")
    check_activation(activation)
    x = mixed(x)
    if use_triton(backend, x, gate, value):
        from kernels.block_diagonal_matmul import triton

        return triton.block_diagonal_glu(x, gate, value, activation=activation)
    return reference.block_diagonal_glu(x, gate, value, activation=activation)


def check(x: torch.Tensor, w: torch.Tensor) -> None:
    if w.dim() != 3:
        raise ValueError(f"expected w (G, I, O), got {tuple(w.shape)}")
    blocks, width, _ = w.shape
    if x.shape[-1:] != (blocks * width,):
        raise ValueError(f"expected x (..., {blocks} x {width} = {blocks * width}), got {tuple(x.shape)}")
