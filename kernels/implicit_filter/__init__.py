"""Hyena's filters: what a small network with sines makes of positions, and forgets with distance."""

from collections.abc import Sequence

import torch

from kernels.checks import use_triton
from kernels.implicit_filter import reference

HIDDEN = 3  # layers that the kernels compute, those of the published filters
NARROW = 4  # features of a layer up to which they do, and 7 of a position: each is a vector in registers


def implicit_filter(
    position: torch.Tensor,
    frequency: torch.Tensor,
    hidden: Sequence[tuple[torch.Tensor, torch.Tensor]],
    out: torch.Tensor,
    decay: torch.Tensor,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """h[c, t] = exp(-decay[c] t) (out z(t))[c], z(t) position[t] and then sin(frequency (W z + b)), layer by layer.

    The implicit filter of Hyena (Poli et al. 2023, arXiv 2302.10866), section 3.3, in fp32. Hardly any arithmetic, but
    some forty operations on tiny tensors, forward and backward; in Triton four launches.

    Args:
        position: (L, E), a code of each of L positions.
        frequency: (F,).
        hidden: of each layer W (F, inputs) and b (F,).
        out: (C, F).
        decay: (C,), 0 or more.
        backend: "auto" | "torch" | "triton". Triton computes three hidden layers up to 4 wide; others go by torch,
            whatever this says.

    Returns:
        (C, L), at least fp32.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    width = frequency.shape[0] if frequency.dim() == 1 else 0
    inputs = position.shape[1] if position.dim() == 2 else 0
    fitting = inputs and width and len(hidden) and out.dim() == 2 and out.shape[1] == width
    for weight, bias in hidden:
        fitting = fitting and weight.shape == (width, inputs) and bias.shape == (width,)
        inputs = width
    if not fitting or decay.shape != out.shape[:1]:
        layers = ", ".join(f"{tuple(weight.shape)} and {tuple(bias.shape)}" for weight, bias in hidden)
        raise ValueError(
            f"expected position (L, E), frequency (F,), hidden (F, E) and (F,), then (F, F) and (F,), out (C, F) and "
            f"decay (C,), got {tuple(position.shape)}, {tuple(frequency.shape)}, {layers}, {tuple(out.shape)} and "
            f"{tuple(decay.shape)}"
        )
    tensors = (position, frequency, *(t for layer in hidden for t in layer), out, decay)
    narrow = len(hidden) == HIDDEN and width <= NARROW and position.shape[1] < 2 * NARROW
    if use_triton(backend, *tensors) and narrow and out.numel() and len(position):
        from kernels.implicit_filter import triton

        return triton.implicit_filter(*tensors)
    return reference.implicit_filter(position, frequency, hidden, out, decay)
