"""Activations that kernels fuse, and their derivatives; None is the identity."""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from kernels.tiles import LOG2E


@triton.jit
def _sigmoid(x):
    root = tl.rsqrt(1 + tl.exp2(-x * LOG2E))  # a division and tl.exp look out for the smallest numbers
    return root * root


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        z = z * _sigmoid(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The activation's derivative at z."""
    if ACTIVATION == "silu":
        s = _sigmoid(z)
        return s * (1 + z * (1 - s))
    else:
        return 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
