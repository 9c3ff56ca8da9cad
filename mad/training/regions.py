"""Layers compiled one by one, so that a new vocabulary or another head compiles no layer anew.

The regions are the residual branches, x + layer(norm(x)): one function, of which torch.compile keeps a version for each
kind of layer and shape; the last norm; and an auto-encoder's decoder. A layer whose code cannot be compiled runs as it
is.
"""

import functools
import logging
import warnings
from typing import Any

import torch
from torch import _dynamo
from torch._dynamo.exc import TorchDynamoException

from mad.models.stack import residual

log = logging.getLogger(__name__)
VERSIONS = 512  # kinds of layers times shapes, in one process


def compile_layers(model: Any) -> None:
    """Have the branches of a model of `models.build` compiled as they are first used."""
    model.stack.residual = _residual()
    for module in (model.norm, getattr(model, "decoder", None)):
        if module is not None:
            module.forward = torch.compile(module.forward, dynamic=False)


@functools.cache
def _residual() -> Any:
    dynamo = _dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VERSIONS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, VERSIONS)
    warnings.filterwarnings("ignore", message=r"\s*Online softmax is disabled")  # nothing a user could change
    compiled = torch.compile(residual, dynamic=False)
    refused: set[type] = set()

    def run(norm: Any, layer: Any, x: torch.Tensor) -> torch.Tensor:
        if type(layer) in refused:
            return residual(norm, layer, x)
        try:
            return compiled(norm, layer, x)
        except TorchDynamoException as error:
            refused.add(type(layer))
            log.warning("%s is not compiled: %s", type(layer).__name__, str(error).strip().splitlines()[0])
            return residual(norm, layer, x)

    return run
