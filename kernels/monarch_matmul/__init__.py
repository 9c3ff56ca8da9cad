"""Product with a Monarch matrix: two block-diagonal factors with a transpose between them."""

import torch

from kernels.checks import mixed, use_triton
from kernels.monarch_matmul import reference


def monarch_matmul(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """y = P2 W2 P1 W1 x: blocks of w1, their outputs read as (r, l) and transposed, blocks of w2, written as (s, l).

    Dao et al. 2022 (Monarch, arXiv 2204.00595), Fu et al. 2023 (Monarch Mixer, arXiv 2310.12109), in their layout.

    Args:
        x: (..., k * p).
        w1: (k, q, p): block k takes its p features to q.
        w2: (l, s, r) with l * r = k * q: output j of the first product is feature r = j // l of block j % l.
        backend: "auto" | "torch" | "triton". "auto" is torch: on an H100 the kernel, whose stores are scattered, took
            1.2 to 3.1 times as long as torch's batched products (`python -m kernels.bench monarch_matmul`).

    Returns:
        (..., s * l): output s of block l stands at s * l_blocks + l. Of x's type, under autocast of its; sums in
        fp32.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    if w1.dim() != 3 or w2.dim() != 3 or w1.shape[0] * w1.shape[1] != w2.shape[0] * w2.shape[2]:
        raise ValueError(
            f"expected w1 (k, q, p) and w2 (l, s, r) with k q = l r, got {tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    blocks, _, width = w1.shape
    if x.shape[-1:] != (blocks * width,):
        raise ValueError(f"expected x (..., {blocks} x {width} = {blocks * width}), got {tuple(x.shape)}")
    x = mixed(x)
    if use_triton(backend, x, w1, w2, width=1, widest=0):
        from kernels.monarch_matmul import triton

        return triton.monarch_matmul(x, w1, w2)
    return reference.monarch_matmul(x, w1, w2)
