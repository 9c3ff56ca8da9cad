"""The algorithms under the layers: plain functions of tensors, a torch reference each (Triton joins them).

Layouts: attention-like q, k, v are (B, H, T, d); convolutions are (B, channels, L) with weights (channels, K).
"""

from kernels.block_diagonal_matmul import block_diagonal_matmul
from kernels.fft_conv import fft_conv
from kernels.linear_attention import linear_attention
from kernels.short_conv import short_conv
from kernels.taylor_attention import taylor_attention

__all__ = ["block_diagonal_matmul", "fft_conv", "linear_attention", "short_conv", "taylor_attention"]
