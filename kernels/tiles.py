"""What the Triton kernels share: block sizes by bucket, and the precision of products on matrix units.

Block sizes come from shapes by named rules, not from an autotuner: a sweep over many shapes then compiles each kernel a
handful of times. Ranks stay small: no block below 16, the least a matrix unit takes.
"""

import os

import torch

# Multiply-adds are fused, as every Triton up to 3.9 does by default; 3.10 changes the default, 3.9 asks to say so.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def bucket(n: int, low: int = 16, high: int = 128) -> int:
    """The smallest power of two >= n, within [low, high] (powers of two themselves)."""
    return max(low, min(high, 1 << max(0, n - 1).bit_length()))


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: three TF32 products a product where inputs are fp32 (about 1e-6), else exact."""
    return "tf32x3" if dtype == torch.float32 else "ieee"
