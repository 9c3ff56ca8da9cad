"""The RMS norm inside mixers, whose states and sums are in fp32 whatever the weights are."""

import torch
import torch.nn.functional as F
from torch import nn

import kernels


class WideRMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32 (fp64 for fp64): the weight is widened too.

    torch's own takes an fp32 x with a weight of bf16, where the whole layer has been cast, by a slow path and warns.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(kernels.wide(x), self.normalized_shape, kernels.wide(self.weight), self.eps)
