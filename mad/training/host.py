"""What a run needs of its process: a fixed number of threads, memory that is kept, algorithms that repeat."""

import contextlib
import functools
import os
import platform
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mad
from mad.determinism import algorithms
from mad.memory import keep_freed_memory


class Place:
    """Where runs are queued on the GPU, one after the other: a stream and a generator. What is recorded there keeps
    both, so a run that takes recordings over must have the same."""

    def __init__(self) -> None:
        torch.cuda.init()
        self.stream = torch.cuda.Stream()
        self.default = torch.cuda.default_generators[torch.cuda.current_device()]
        self.generator = self.default.clone_state()


@functools.cache
def own_place() -> Place:
    """The place of runs that are trained one at a time in this process: memory freed on a stream is that stream's."""
    return Place()


class Scope:
    """What a run needs around whatever it does; entered anew each time it goes on, so that runs may take turns.

    Inside, the same seed gives the same bits, whatever the caller has set (autocast, no_grad, a default type); outside,
    generators and settings are what they were. On a CPU that means one thread, because a sum's order follows the number
    of threads; workers run side by side. On CUDA the run is at a `Place` of its own and, with `deterministic`, an
    operation that cannot repeat its result raises a RuntimeError (a warning alone would leave the backward pass of
    fused attention as it is, with atomic additions).
    """

    def __init__(self, seed: int, device: str, deterministic: bool, place: Place | None = None):
        self.seed, self.device, self.deterministic = seed, device, device == "cuda" and deterministic
        self.place = place or Place() if device == "cuda" else None
        self._rng: torch.Tensor | None = None  # of the CPU, once the run has drawn from it

    def __enter__(self) -> "Scope":
        outer = self._outer = contextlib.ExitStack()  # how things were
        outer.callback(torch.set_rng_state, torch.get_rng_state())
        outer.callback(torch.set_autocast_enabled, self.device, torch.is_autocast_enabled(self.device))
        torch.set_autocast_enabled(self.device, False)
        outer.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        outer.enter_context(torch.inference_mode(False))  # and with gradients
        if self.place is None:
            outer.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            keep_freed_memory()
        else:
            generator = self.place.default
            outer.callback(generator.graphsafe_set_state, generator.graphsafe_get_state())
            generator.graphsafe_set_state(self.place.generator)
            outer.enter_context(torch.cuda.stream(self.place.stream))
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            outer.enter_context(algorithms(True, fill=False))  # nothing here reads what it did not write
        if self._rng is None:
            torch.manual_seed(self.seed)
        else:
            torch.set_rng_state(self._rng)
        return self

    def __exit__(self, *error: Any) -> None:
        self._rng = torch.get_rng_state()
        self._outer.close()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, Python's and NumPy's own generators begin at `seed`, for layers that draw their weights from them; after
    it they are as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


@functools.cache
def versions() -> dict[str, str]:
    return {"mad": mad.__version__, "torch": torch.__version__, "python": platform.python_version()}


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout this code runs from, with '+' where files differ from it; None if it is installed."""
    root = Path(mad.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
