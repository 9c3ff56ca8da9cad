"""Vectors of tokens in plain torch."""

from typing import Any

import torch
import torch.nn.functional as F

from kernels.checks import as_given

FEW = 256  # vectors up to which their gradient is a product with a one-hot matrix on a GPU


def embedding(weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """See kernels.embedding."""
    if tokens.dtype != torch.int32:  # torch looks up these two types alone
        tokens = tokens.long()
    if weight.is_cuda and len(weight) <= FEW:
        return _Lookup.apply(weight, tokens)
    return F.embedding(tokens, weight)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens)
        ctx.rows = len(weight)
        return weight[tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (tokens,), (gradient,) = ctx.saved_tensors, gradients
        ids = torch.arange(ctx.rows, device=tokens.device).unsqueeze(-1)
        one_hot = (ids == tokens.flatten()).to(gradient.dtype)  # (V, N)
        with as_given(tokens):
            return one_hot @ gradient.flatten(0, -2), None
