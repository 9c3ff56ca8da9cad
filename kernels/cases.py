"""What a kernel's folder says of itself for the bench and the compile check: `kernels/NAME/cases.py`.

A cases module holds
    SHAPES      list of dicts: the shapes of the published benchmark and of our own tasks, which `kernels.bench` times
    CONFIGS     list of dicts: small shapes that together reach every configuration the kernel's rules can choose,
                those of SHAPES among them, the most demanding first. What a folder offers besides (with a bias, gated,
                "step": one token of decoding, without gradients; "keep": by kernels of its own) is a key of a shape, in
                both lists
    tensors(shape, dtype, device) -> dict of the function's tensors, N(0, 1)-sized
    work(shape, size, backward) -> Work: what must at least be moved and computed (size: bytes per element)
    rivals() -> dict of name -> function with the kernel's signature, the strongest stock alternatives; or of name ->
                (prepare, function) for one that wants another layout: prepare(tensors) -> its arguments, not timed.
                Not asked of steps; NotImplementedError: not for such a shape
    call(tensors, backend) -> the outputs to differentiate    (optional; by default the function of the folder's name)
    BACKWARD = False                                            (optional: a folder without gradients)
    BACKEND = "triton"                                          (optional: where "auto" is torch throughout)
"""

import importlib.util
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

import kernels
from mad.registry import unknown

KINDS = ("step", "keep")  # of shapes that other operators or kernels of a folder compute


@dataclass(frozen=True)
class Work:
    """The least a kernel must do: bytes to and from HBM, FLOPs on matrix units, exponentials."""

    bytes: float
    flops: float
    exps: float = 0.0

    def floor(self) -> float:
        """Seconds on an H100 SXM at 3.35 TB/s, 989 TFLOP/s (bf16, dense) and 3.7e12 exponentials a second."""
        return max(self.bytes / 3.35e12, self.flops / 989e12, self.exps / 3.7e12)


def names() -> list[str]:
    """Kernels with a cases module."""
    folders = (m.name for m in pkgutil.iter_modules(kernels.__path__) if m.ispkg)
    return [n for n in folders if importlib.util.find_spec(f"kernels.{n}.cases")]


def load(name: str) -> ModuleType:
    """The cases of one kernel. Raises ValueError for a name that does not exist."""
    if name not in names():
        raise unknown("kernel", name, names())
    return importlib.import_module(f"kernels.{name}.cases")


def kinds(module: ModuleType) -> list[str | None]:
    """Those of a kernel's CONFIGS; None: neither of KINDS."""
    return [None, *(kind for kind in KINDS if any(shape.get(kind) for shape in module.CONFIGS))]


def smallest(module: ModuleType, kind: str | None = None) -> dict[str, Any]:
    """The one of a kernel's CONFIGS of a kind that moves the fewest bytes: what an interpreter can still run."""
    shapes = (shape for shape in module.CONFIGS if [k for k in KINDS if shape.get(k)] == ([kind] if kind else []))
    return min(shapes, key=lambda shape: module.work(shape, 4, False).bytes)


def gradients(module: ModuleType, shape: dict[str, Any]) -> bool:
    """Whether the kernel has gradients at this shape."""
    return getattr(module, "BACKWARD", True) and not shape.get("step")


def installed(package: str) -> bool:
    """Whether a rival that is no dependency of ours can be timed."""
    return importlib.util.find_spec(package) is not None


def leaves(tensors: dict[str, Any]) -> list[torch.Tensor]:
    """The floating-point tensors among a kernel's arguments, from now on with gradients."""
    found = [t for t in tensors.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return [t.requires_grad_() for t in found]


def backend(cases: ModuleType) -> str:
    """The backend that takes the Triton kernel wherever it fits."""
    return getattr(cases, "BACKEND", "auto")


def call(cases: ModuleType, tensors: dict[str, torch.Tensor], backend: str) -> Any:
    """The kernel's outputs on these tensors."""
    if hasattr(cases, "call"):
        return cases.call(tensors, backend)
    return getattr(kernels, cases.__name__.split(".")[1])(**tensors, backend=backend)
