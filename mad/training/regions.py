"""Layers compiled one by one, so that a new vocabulary or another head compiles no layer anew.

The regions are the layers: one function, of which torch.compile keeps a version for each kind of layer and shape; and
an auto-encoder's decoder. What joins them, sums and norms, has a kernel. Where a forward cannot be compiled, that kind
of module runs as it is.
"""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

from mad.models.stack import run

log = logging.getLogger(__name__)
VERSIONS = 512  # kinds of layers times shapes, in one process
OPTIONS: dict[str, Any] = {
    # timed, and so not the same in each process: with another block of threads a * b + c * d, as in rotary positions,
    # is rounded otherwise, as one or the other product is fused with the sum
    "triton.autotune_pointwise": False,
}


def compile_layers(model: Any) -> None:
    """Have the regions of a model of `models.build` compiled as they are first used."""
    model.stack.run = _run()
    if hasattr(model, "decoder"):
        decoder = model.decoder
        decoder.forward = _compiled(decoder.forward, lambda x: type(decoder))


@functools.cache
def _run() -> Any:
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, VERSIONS)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, VERSIONS)
    warnings.filterwarnings("ignore", message=r"\s*Online softmax is disabled")  # nothing a user could change
    return _compiled(run, lambda layer, x: type(layer))


def _compiled(forward: Any, kind: Callable[..., type]) -> Any:
    return _or_plain(torch.compile(forward, dynamic=False, options=OPTIONS), forward, kind)


def _or_plain(compiled: Any, plain: Any, kind: Callable[..., type]) -> Any:
    """`compiled`, and where that fails for a kind of module `plain`, from then on."""
    from torch._dynamo.exc import TorchDynamoException  # not before: half of the time that a command takes to start

    refused: set[type] = set()

    def attempt(*given: Any) -> torch.Tensor:
        if kind(*given) not in refused:
            try:
                return compiled(*given)
            except TorchDynamoException as error:
                refused.add(kind(*given))
                log.warning("%s is not compiled: %s", kind(*given).__name__, " ".join(str(error).split())[:200])
        return plain(*given)

    return attempt
