"""Layers of a user's own, tried before they train: one that sees later tokens would win every board.

Those in `layers/` have their contract tests. This happens on the CPU, where the run does, as nobody knows what such a
layer does to its process; one that cannot run there, because it needs a GPU, passes.
"""

from collections.abc import Iterator
from typing import Any

import torch

from layers import Layer

LONGEST = 512  # tokens that are tried
CHANGE = 1e-3  # of earlier outputs, relative to their size, beyond what rounding makes


def try_layers(stack: Any, length: int) -> None:
    """Raise ValueError for a layer of a stack, from outside of `layers/`, whose output has another shape than its
    input, or that is causal by its word alone."""
    for layer in own(stack.layers):
        name, length = type(layer).__name__, min(length, LONGEST)
        x, fresh = torch.randn(2, 2, length, layer.dim, generator=torch.Generator().manual_seed(0))
        others = {first: torch.cat([x[:, :first], fresh[:, first:]], 1) for first in (length // 2, length - 1)}
        training, _ = layer.training, layer.eval()
        try:
            y, again = output(layer, x), output(layer, x)
            changed = {first: output(layer, other) for first, other in others.items()}
        except Exception:
            continue
        finally:
            layer.train(training)
        if getattr(y, "shape", None) != x.shape:
            got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError(f"{name} makes {got} of an input {tuple(x.shape)}; expected the same shape (B, T, dim)")
        if not layer.causal or not torch.equal(y, again):  # what differs by itself says nothing
            continue
        for first, other in changed.items():
            seen = (other - y)[:, :first].abs().amax((0, 2)) > CHANGE * y.abs().max()
            if seen.any():
                raise ValueError(
                    f"{name} looks ahead: its output at token {int(seen.nonzero()[0])} of {length} changes with those "
                    f"from token {first} on; expected a causal layer, or `causal = False` in its class (then it fits "
                    "the head 'autoencoder' only)"
                )


def output(layer: Layer, x: torch.Tensor) -> Any:
    """With the same noise every time, where the layer has some."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return layer(x)


def own(branches: Any) -> Iterator[Layer]:
    """The layers that are not from `layers/`, those side by side too."""
    for layer in branches:
        if hasattr(layer, "branches"):
            yield from own(layer.branches)
        elif type(layer).__module__.partition(".")[0] not in ("layers", "mad"):
            yield layer
