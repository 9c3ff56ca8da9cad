"""Layers of a user's own, tried before they train: one that sees later tokens would win every board.

Those in `layers/` have their contract tests. This happens on the CPU, where the run does, as nobody knows what such a
layer does to its process; one that cannot run there, because it needs a GPU, passes.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch

from layers import Layer
from mad.models.stack import Parallel

LONGEST = 512  # tokens that are tried
CHANGE = 1e-3  # of earlier outputs, relative to their size, beyond what rounding makes


def try_layers(stack: Any, length: int) -> None:
    """Raise ValueError for a layer of a stack, from outside of `layers/`, whose output has another shape than its
    input, or that is causal by its word alone."""
    length = min(length, LONGEST)
    for layer in own(stack.layers):
        name, generator = type(layer).__name__, torch.Generator().manual_seed(0)
        x, fresh = torch.randn(2, 2, length, layer.dim, generator=generator)
        places = sorted({length // 2, min(length // 2 + 1, length - 1), length - 1})  # odd and even: of chunks, too
        others = {first: torch.cat([x[:, :first], fresh[:, first:]], 1) for first in places}
        try:
            tried = copy.deepcopy(layer).eval()  # which may keep what it has seen
            drawn(tried, generator)
            y, again = output(tried, x), output(tried, x)
            changed = {first: output(tried, other) for first, other in others.items()}
        except Exception:
            continue
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


def drawn(layer: Layer, generator: torch.Generator) -> None:
    """Numbers for the maps that begin at zero, behind which nothing would show."""
    for parameter in layer.parameters():
        if not parameter.any():
            parameter.detach().copy_(torch.randn(parameter.shape, generator=generator) * layer.dim**-0.5)


def output(layer: Layer, x: torch.Tensor) -> Any:
    """With the same noise every time, where the layer has some."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return layer(x)


def own(branches: Any) -> Iterator[Layer]:
    """The layers that are not from `layers/`, those side by side too."""
    for layer in branches:
        if isinstance(layer, Parallel):
            yield from own(layer.branches)
        elif type(layer).__module__.partition(".")[0] not in ("layers", "mad"):
            yield layer
