"""The stack: layers as pre-norm residual branches, one after the other or side by side."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

import kernels
import layers
from kernels.checks import mixed_type
from layers import Layer
from mad.models.notation import Spec, expand
from mad.registry import unknown

NORMS = {"rms": False, "layer": True}  # whether the mean is subtracted


class Norm(nn.Module):
    """RMSNorm or LayerNorm of the residual stream, taken where a branch's output y is added to it: one kernel for both.

    Args:
        kind: of NORMS.
    """

    def __init__(self, kind: str, dim: int):
        super().__init__()
        if kind not in NORMS:
            raise unknown("norm", kind, NORMS)
        self.center, self.eps = NORMS[kind], 1e-5
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if self.center else None

    def forward(
        self, x: torch.Tensor, y: torch.Tensor | None = None, *, rounded: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (..., dim), y the same or None -> x + y, and the norm of that, where `rounded` of the type that autocast
        gives to products."""
        dtype = mixed_type(x) if rounded else None
        return kernels.add_norm(x, y, self.weight, self.bias, center=self.center, eps=self.eps, dtype=dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, center={self.center}, eps={self.eps}"


def run(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """(B, T, dim) -> (B, T, dim). A function of the layer, of which compiled code is kept for each kind."""
    return layer(x)


class Parallel(Layer):
    """y = sum of the branches' outputs, all on the same input."""

    def __init__(self, dim: int, max_length: int, branches: Sequence[Layer]):
        super().__init__(dim, max_length)
        self.branches: Any = nn.ModuleList(branches)
        self.causal = all(branch.causal for branch in branches)
        self.countable = all(branch.countable for branch in branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)

    def init_state(self, batch: int) -> tuple:
        return tuple(branch.init_state(batch) for branch in self.branches)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, tuple]:
        outputs, states = zip(*(b.step(x_t, s) for b, s in zip(self.branches, state, strict=True)), strict=True)
        return torch.stack(outputs).sum(0), states

    def state_size(self, length: int) -> int:
        return sum(branch.state_size(length) for branch in self.branches)

    def flops(self, length: int) -> int:
        return sum(branch.flops(length) for branch in self.branches)

    def active_params(self) -> int:
        return sum(branch.active_params() for branch in self.branches)


def each(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The layers, of those side by side one after the other."""
    for layer in layers:
        if isinstance(layer, Parallel):
            yield from each(layer.branches)
        else:
            yield layer


class Stack(nn.Module):
    """x + layer(norm(x)), layer after layer, (B, T, dim) -> (B, T, dim)."""

    def __init__(self, stack: Any, dim: int, max_length: int, norm: str = "rms"):
        super().__init__()
        self.layers: Any = nn.ModuleList(build_layer(spec, dim, max_length) for spec in expand(stack))
        self.norms = nn.ModuleList(Norm(norm, dim) for _ in self.layers)
        self.run = run  # or a compiled one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, y = self.apart(x)
        return x + y

    def apart(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The output in two parts: the residual stream, and the last branch's output, not yet added to it."""
        y = None
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x, normed = norm(x, y, rounded=layer.takes_rounded)
            y = self.run(layer, normed)
        return x, y

    @property
    def not_causal(self) -> list[str]:
        """The layers that look ahead."""
        return [type(layer).__name__ for layer in each(self.layers) if not layer.causal]

    def init_state(self, batch: int) -> tuple:
        return tuple(layer.init_state(batch) for layer in self.layers)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, tuple]:
        """x_t (B, dim), state -> (B, dim), state."""
        states: list[Any] = []
        y: Any = None
        for norm, layer, layer_state in zip(self.norms, self.layers, state, strict=True):
            x_t, normed = norm(x_t, y)
            y, layer_state = layer.step(normed, layer_state)
            states.append(layer_state)
        return x_t + y, tuple(states)

    def state_size(self, length: int) -> int:
        return sum(layer.state_size(length) for layer in self.layers)

    def flops(self, length: int) -> int:
        return sum(layer.flops(length) for layer in self.layers)


def build_layer(spec: Spec, dim: int, max_length: int) -> Layer:
    """A layer from a spec of `notation.expand`."""
    if isinstance(spec, dict) and "parallel" in spec:
        return Parallel(dim, max_length, [layers.build(branch, dim, max_length) for branch in spec["parallel"]])
    return layers.build(spec, dim, max_length)
