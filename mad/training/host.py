"""What a run needs of its process: a fixed number of threads, memory that is kept, algorithms that repeat."""

import contextlib
import functools
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

import mad
from mad.memory import keep_freed_memory


@contextlib.contextmanager
def repeatable(seed: int, device: str, deterministic: bool = True) -> Iterator[None]:
    """Inside, the same seed gives the same bits; afterwards generators and settings are what they were.

    On a CPU that means one thread, because a sum's order follows the number of threads; workers run side by side. On
    CUDA, with `deterministic`, an operation that cannot repeat its result raises a RuntimeError (a warning alone would
    leave the backward pass of fused attention as it is, with atomic additions).
    """
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if device == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    elif deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)


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
