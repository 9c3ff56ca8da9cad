"""The seam of two residual branches: the sum with the last one's output, and its norm for the next one."""

import torch

from kernels.add_norm import reference
from kernels.checks import use_triton

WIDEST = 4096  # features of a row that one program holds


def add_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    center: bool = False,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + y, and n = weight s / sqrt(mean(s^2) + eps) + bias, over the last dimension.

    RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), or with `center` LayerNorm (Ba et al. 2016, arXiv 1607.06450):
    of s less its mean. On a GPU s is read and written once forward, and backward the gradients of both outputs meet,
    and leave as those of x, y and weight, in one pass.

    Args:
        x: (..., D), the residual stream.
        y: (..., D), of any type; None: s is x.
        weight, bias: (D,).
        center: subtract the mean first.
        dtype: of n, as a product under autocast would round it; None: that of s.
        backend: "auto" | "torch" | "triton".

    Returns:
        s, of the wider of both types, and n, computed in at least fp32.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    width = x.shape[-1:]
    if not x.dim() or (y is not None and y.shape != x.shape) or weight.shape != width:
        other = "" if y is None else f" and y {tuple(y.shape)}"
        raise ValueError(
            f"expected x and y (..., D) and weight (D,), got x {tuple(x.shape)}{other}, weight {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != width:
        raise ValueError(f"expected bias ({width[0]},), got {tuple(bias.shape)}")
    fits = backend == "triton" or width[0] <= WIDEST
    if use_triton(backend, x, y, weight, bias) and fits and x.numel():
        from kernels.add_norm import triton

        return triton.add_norm(x, y, weight, bias, center=center, eps=eps, dtype=dtype)
    return reference.add_norm(x, y, weight, bias, center=center, eps=eps, dtype=dtype)
