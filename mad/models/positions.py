"""Vectors at some positions of each sequence, with a gradient that sorts nothing."""

from typing import Any

import torch

from mad.determinism import algorithms


def at_positions(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x (B, T, D) at positions (B, K) -> (B, K, D)."""
    if torch.are_deterministic_algorithms_enabled():
        return _AtPositions.apply(x, positions)
    return x.gather(1, _index(positions, x.shape[2]))


class _AtPositions(torch.autograd.Function):
    """Where algorithms are to be deterministic, torch's gradient of `gather` on a GPU sorts all B K D places, lest one
    be named twice. Places that differ are written once each, in whatever order; what is named more often than twice is
    summed in any order."""

    @staticmethod
    def forward(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x.gather(1, _index(positions, x.shape[2]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        x, positions = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(positions)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (positions,) = ctx.saved_tensors
        with algorithms(False):
            return dy.new_zeros(ctx.shape).scatter_add(1, _index(positions, dy.shape[2]), dy), None


def _index(positions: torch.Tensor, width: int) -> torch.Tensor:
    return positions.unsqueeze(-1).expand(-1, -1, width)
