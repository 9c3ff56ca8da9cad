"""How a Triton kernel is shown to be right: against a float64 oracle, by a check that is known to fail when it should.

On a machine without a GPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1, which tests/conftest.py sets);
there bfloat16 is silently wrong, so it is left to CUDA. Outputs that a kernel forgets to write hold NaN, because memory
is poisoned while it runs; and what it loads or stores outside of its tensors is an error.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from mad.determinism import algorithms

# relative error ||got - want|| / ||want|| allowed of outputs and of gradients
TOLERANCE = {
    torch.float32: (1e-5, 1e-4),
    torch.float16: (5e-3, 5e-3),
    torch.bfloat16: (1e-2, 2e-2),
}


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """||got - want|| / ||want|| in float64; ||got - want|| where `want` is zero; inf where `got` is not finite."""
    if got.shape != want.shape:
        raise AssertionError(f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}")
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if not got.isfinite().all():
        return float("inf")
    zero = want.norm() <= 1e-12 * want.numel() ** 0.5  # but for rounding, in float64
    return ((got - want).norm() / (1.0 if zero else want.norm())).item()


def verify(
    kernel: Callable[..., Any],
    oracle: Callable[..., Any],
    tensors: dict[str, torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    wide: tuple[str, ...] = (),
    gradients: bool = True,
    scale: float = 1.0,
    **options: Any,
) -> None:
    """Assert that kernel(**tensors, **options, backend="triton") equals oracle(**tensors, **options) in float64.

    Compares every output (a tensor, or a tuple of them) and, for each floating-point tensor, the gradient of a random
    linear function of the outputs.

    Args:
        tensors: float64 (integer tensors pass as they are); rounded to `dtype` first, for the oracle too.
        wide: names of the tensors that stay float32 whatever `dtype` is.
        gradients: False for kernels without a backward.
        scale: multiplies the tolerances, for algorithms with a known larger error.
    """
    tensors = {name: t.detach().to(device) for name, t in tensors.items()}
    given = {
        name: t.to(torch.float32 if name in wide else dtype) if t.is_floating_point() else t
        for name, t in tensors.items()
    }
    exact = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
    with poisoned_memory(), within_bounds():
        got = run(kernel, given, options | {"backend": "triton"}, gradients)
    want = run(oracle, exact, options, gradients)
    assert got.keys() == want.keys(), f"expected {sorted(want)}, got {sorted(got)}"
    forward, backward = TOLERANCE[dtype]
    for name, value in got.items():
        error = relative_error(value, want[name])
        allowed = scale * (backward if name.startswith("d ") else forward)
        assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.0e}"


def run(
    function: Callable[..., Any], tensors: dict[str, torch.Tensor], options: dict[str, Any], gradients: bool
) -> dict[str, torch.Tensor]:
    """Outputs ("out 0", ...) and gradients ("d q", ...) of a random linear function of them."""
    leaves = {n: t.clone().requires_grad_(gradients) for n, t in tensors.items() if is_data(t)}
    outputs = function(**(tensors | leaves), **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    result = {f"out {i}": y for i, y in enumerate(outputs)}
    if gradients:
        generator = torch.Generator().manual_seed(17)
        loss = torch.zeros((), dtype=torch.float64)
        for y in outputs:
            # rounded to bf16: every type then sees the same cotangent, exactly
            weight = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y)
            loss = loss + (y * weight).sum().double().cpu()
        for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            result[f"d {name}"] = grad
    return result


def is_data(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.is_floating_point()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN inside: what a kernel leaves unwritten shows."""
    with algorithms(True, warn_only=True):  # which fills uninitialised memory
        yield


@contextmanager
def within_bounds() -> Iterator[None]:
    """Triton's interpreter raises AssertionError where an unmasked lane loads or stores outside of a launch's tensors.

    A tensor reaches from its first element to its last, as its strides place them, not over all of its storage: what
    lies around a view is there by the caller's choice, and a kernel that reads it would fault on the same tensor alone.
    Pointers do not say which tensor they come from, so a lane may fall into any tensor of the launch; gaps between the
    elements of a view count as its own. No kernel has atomics: they are not looked at. On a GPU this does nothing.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    host, launch = executor._init_args_hst, executor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store
    kernel, extents = "", []  # of the launch that runs; (first byte, byte past the last) of each tensor

    def on_host(self, arguments, options):
        nonlocal kernel, extents
        arguments, options = host(self, arguments, options)
        given = [t for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)]
        kernel, extents = f"{self.fn.__module__}.{self.fn.__name__}", [extent(t) for t in given if t.numel()]
        return arguments, options

    def launch_unwrapped(self, *arguments, **options):
        try:
            launch(self, *arguments, **options)
        except interpreter.InterpreterError as error:  # one more around each function that called
            cause = error
            while isinstance(cause, interpreter.InterpreterError):
                cause = cause.__cause__
            if isinstance(cause, AssertionError):
                raise cause from None
            raise

    def check(what, pointers, mask):
        places = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if places.size:
            away = outside(places, size, extents)
            assert not away, f"{kernel}: {what} of {size} bytes, {away} bytes outside of its tensors"

    def checked_load(self, pointers, mask, *rest):
        check("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, value, mask, *rest):
        check("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.multiple(executor, _init_args_hst=on_host, __call__=launch_unwrapped),
        mock.patch.multiple(builder, create_masked_load=checked_load, create_masked_store=checked_store),
    ):
        yield


def extent(t: torch.Tensor) -> tuple[int, int]:
    """Addresses of its first byte, and of the byte after its last."""
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def outside(places: np.ndarray, size: int, extents: list[tuple[int, int]]) -> int:
    """By how many bytes the farthest of `size` bytes at each of the places leaves the nearest extent; 0: none does."""
    low, high = int(places.min()), int(places.max()) + size
    if any(first <= low and high <= end for first, end in extents):
        return 0  # as it nearly always is: together in one
    away = np.full(places.shape, np.iinfo(np.int64).max)
    for first, end in extents:
        beyond = np.maximum(first - places.astype(np.int64), places.astype(np.int64) + (size - end))
        away = np.minimum(away, np.maximum(beyond, 0))
    return int(away.max())
