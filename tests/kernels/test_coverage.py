"""What SHAPES reach, CONFIGS reach too: the compile check and the tests on a card see nothing else.

Nothing is computed: tensors are on torch's meta device, and launches are written down.
"""

import inspect

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import cases, checks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="looks into Triton's interpreter")


class OperatorsRun(TorchDispatchMode):
    """Our operators do on meta tensors what they do on real ones, instead of what their fakes say."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        run = OPDEFS[func.name()]._init_fn if func.namespace == "mad" else func
        return run(*args, **(kwargs or {}))


def configuration(kernel, arguments: tuple, options: dict) -> tuple:
    """What a launch is compiled for, but for types and divisibility: constants, warps and stages, tensors left out."""
    parameters = inspect.signature(kernel).parameters
    given = inspect.signature(kernel).bind(*arguments, **{n: v for n, v in options.items() if n in parameters})
    fixed = [
        (name, str(value))
        for name, value in given.arguments.items()
        if value is None or "constexpr" in str(parameters[name].annotation)
    ]
    launch = [(name, str(value)) for name, value in options.items() if name not in parameters and name != "warmup"]
    return f"{kernel.__module__}.{kernel.__name__}", *fixed, *sorted(launch)


def reached(module, shapes: list[dict], dtype: torch.dtype, monkeypatch) -> dict[tuple, dict]:
    """The configurations of all launches, forward and backward, and the first of the shapes that has each."""
    from triton.runtime.interpreter import InterpretedFunction

    found = {}

    def write_down(self, *arguments, grid, **options):
        found.setdefault(configuration(self.fn, arguments, options), shape)

    monkeypatch.setattr(InterpretedFunction, "run", write_down)
    monkeypatch.setattr(checks, "on_card", lambda t: True)
    for shape in shapes:
        tensors = module.tensors(shape, dtype, "meta")
        with OperatorsRun():
            leaves = cases.leaves(tensors) if cases.gradients(module, shape) else []
            outputs = tree_leaves(cases.call(module, tensors, cases.backend(module)))
            if leaves:
                torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", cases.names())
def test_every_configuration_of_the_shapes_is_among_the_configs(name, dtype, monkeypatch):
    module = cases.load(name)
    small = reached(module, module.CONFIGS, dtype, monkeypatch)
    large = reached(module, module.SHAPES, dtype, monkeypatch)
    missing = [f"{shape}: {configuration}" for configuration, shape in large.items() if configuration not in small]
    assert small and large and not missing, "\n".join(["CONFIGS lack", *missing])


def test_what_is_missing_is_seen(monkeypatch):
    """By the very kernel whose CONFIGS lacked most."""
    module = cases.load("block_diagonal_matmul")
    found = reached(module, module.CONFIGS, torch.float16, monkeypatch)
    fewer = reached(module, module.CONFIGS[1:], torch.float16, monkeypatch)
    assert fewer.keys() < found.keys()
