"""What every kernel checks before it starts: which implementation runs, in which precision, and that shapes fit."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F

from mad.registry import unknown

BACKENDS = ("auto", "torch", "triton")
INSTALLED = importlib.util.find_spec("triton") is not None
ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}  # that kernels fuse
WIDEST = 256  # of heads, for every Triton kernel
_auto = "auto"  # what backend="auto" means; see use_backend


def use_triton(
    backend: str, *tensors: torch.Tensor | None, width: int = 0, widest: int = WIDEST, gradients: bool = True
) -> bool:
    """Whether the Triton kernel runs on these tensors, or the torch reference.

    "auto" takes Triton for CUDA tensors where it is installed, up to the width at which its tiles still fit into
    registers; fp64 stays with torch. "triton" insists, also on a CPU where TRITON_INTERPRET=1 was set before Python
    started.

    Args:
        backend: "auto" | "torch" | "triton".
        tensors: the function's tensors; None is ignored.
        width: of the widest head.
        widest: up to which width "auto" takes Triton. No kernel goes beyond WIDEST.
        gradients: whether the kernel has them. Where it has not, "auto" takes torch for tensors that require them.

    Raises:
        ValueError: a backend that does not exist, or "triton" for tensors it cannot run on.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    given = [t for t in tensors if t is not None]
    wanted = not gradients and torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if wanted and backend == "triton":
        raise ValueError("backend='triton' has no gradients here; use torch.no_grad(), or backend='auto'")
    if backend == "auto":
        backend = "torch" if wanted else _auto
    double = any(t.dtype == torch.float64 for t in given)
    if backend == "auto":
        return not double and INSTALLED and width <= widest and all(on_card(t) for t in given) and _together(given)
    if backend == "torch":
        return False
    if not INSTALLED:
        raise ValueError("backend='triton' needs Triton (Linux only: pip install triton); use backend='torch'")
    if double:
        raise ValueError("backend='triton' computes in float32, got float64 tensors; use backend='torch'")
    if width > WIDEST:
        raise ValueError(f"backend='triton' takes heads of width {WIDEST} at most, got {width}; use backend='auto'")
    if not all(runs_here(t) for t in given):
        raise ValueError(
            f"backend='triton' needs CUDA tensors, or TRITON_INTERPRET=1 in the environment, got one on "
            f"{next(t.device for t in given if not runs_here(t))}; use backend='auto'"
        )
    return _together(given)


def _together(given: list[torch.Tensor]) -> bool:
    """Raise for tensors of two devices: what a launch on one of them reads of the other ends the process."""
    for t in given:
        if t.device != given[0].device:
            raise ValueError(f"expected all tensors on one device, got them on {given[0].device} and {t.device}")
    return True


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Inside, backend="auto" means this one: `with kernels.use_backend("torch"): model(x)`.

    Raises:
        ValueError: a backend that does not exist.
    """
    global _auto
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    before, _auto = _auto, backend
    try:
        yield
    finally:
        _auto = before


def on_card(t: torch.Tensor) -> bool:
    return t.is_cuda


def runs_here(t: torch.Tensor) -> bool:
    return on_card(t) or os.environ.get("TRITON_INTERPRET") == "1"


def wide(x: torch.Tensor) -> torch.Tensor:
    """The precision that sums are taken in: fp32, or fp64 for fp64."""
    return x if x.dtype == torch.float64 else x.float()


def mixed_type(x: torch.Tensor) -> torch.dtype:
    """The type that autocast gives to products of x where it lies; of fp64, and outside of autocast, its own."""
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """x in its `mixed_type`."""
    return x.to(mixed_type(x))


def as_given(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Where products are of the types that they are given, whatever autocast there is where x lies."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # there is none on "meta"


def of_integers(t: torch.Tensor) -> bool:
    """Whether it counts or points at something; True and False do not."""
    return not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)


def check_whole(**options: int) -> None:
    """Raise ValueError for options that are not whole numbers of at least 1: `check_whole(window=window)`."""
    for name, value in options.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_activation(name: str) -> None:
    """Raise ValueError unless it is one of ACTIVATIONS."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)


def check_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise ValueError unless q and k are (B, H, T, d) and v (B, H, T, dv)."""
    if v.dim() != 4 or q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"expected q, k (B, H, T, d) and v (B, H, T, dv), got {shapes}")
