"""Layers of a user's own, tried before they train: one that sees later tokens would win every board.

Those in `layers/` have their contract tests. This happens on the CPU, where the run does, as nobody knows what such a
layer does to its process; one that cannot run there, because it needs a GPU, passes.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from layers import Layer
from mad.models.stack import each

LONGEST = 512  # tokens that are tried
# change of earlier outputs, relative to their size, beyond what rounding makes; in fp64 that of what stays in fp32
CHANGE = {torch.float64: 1e-5, torch.float32: 1e-3}
OURS = {"layers", "mad", "torch"}  # packages whose modules need no trial


def try_layers(stack: Any, length: int) -> None:
    """Raise ValueError for a layer of a stack, from outside of `layers/`, whose output has another shape than its
    input, or that is causal by its word alone."""
    length = min(length, LONGEST)
    for layer in own(stack.layers):
        for dtype in CHANGE:  # in fp64 a look-ahead shows that begins small; not every layer can
            with contextlib.suppress(CannotRun), at_hand(layer) as tried:
                _try(tried, length, dtype)
                break


def _try(layer: Layer, length: int, dtype: torch.dtype) -> None:
    name, generator = type(layer).__name__, torch.Generator().manual_seed(0)
    x, fresh = torch.randn(2, 2, length, layer.dim, generator=generator).to(dtype)
    places = sorted({length // 2, min(length // 2 + 1, length - 1), length - 1})  # odd and even: of chunks, too
    others = {first: torch.cat([x[:, :first], fresh[:, first:]], 1) for first in places}
    try:
        layer.to(dtype).eval()
        drawn(layer, generator)
        y, again = output(layer, x), output(layer, x)
        changed = {first: output(layer, other) for first, other in others.items()}
    except Exception as error:
        raise CannotRun from error
    if getattr(y, "shape", None) != x.shape:
        got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"{name} makes {got} of an input {tuple(x.shape)}; expected the same shape (B, T, dim)")
    if not layer.causal or not torch.equal(y, again):  # what differs by itself says nothing
        return
    for first, other in changed.items():
        seen = (other - y)[:, :first].abs().amax((0, 2)) > CHANGE[dtype] * y.abs().max()
        if seen.any():
            raise ValueError(
                f"{name} looks ahead: its output at token {int(seen.nonzero()[0])} of {length} changes with those "
                f"from token {first} on; expected a causal layer, or `causal = False` in its class (then it fits "
                "the head 'autoencoder' only)"
            )


class CannotRun(Exception):
    """On this device, in this type."""


@contextlib.contextmanager
def at_hand(layer: Layer) -> Iterator[Layer]:
    """A copy, which may keep what it has seen; of what cannot be copied (a normed weight) itself, put back after."""
    try:
        tried = copy.deepcopy(layer)
    except Exception:
        parameters = [(parameter, parameter.detach().clone()) for parameter in layer.parameters()]
        modules = [(module, module.training, dict(module._buffers)) for module in layer.modules()]
        buffers = [(buffer, buffer.clone()) for buffer in layer.buffers()]
        try:
            yield layer
        finally:
            for tensor, before in (*parameters, *buffers):
                tensor.data = before
            for module, training, own_buffers in modules:  # another type is another buffer
                module.training = training
                module._buffers.update(own_buffers)
    else:
        yield tried


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


def own(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The layers that are not from `layers/`, or have a part that is not, as a feature map."""
    for layer in each(layers):
        if not {type(module).__module__.partition(".")[0] for module in layer.modules()} <= OURS:
            yield layer
