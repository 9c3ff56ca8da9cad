"""The state of a run that takes long, kept so that a run which is interrupted goes on to the same curve.

One file a run, written in one piece, no more often than every few minutes: tiny runs never write one. Whoever stores
the run's record removes it.
"""

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mad.memory import out_of_memory
from mad.records import replace
from mad.training import host

MINUTES = 5.0


@dataclass(frozen=True)
class Checkpoints:
    """Where the checkpoints of a sweep are, and how many minutes lie between two of a run."""

    folder: Path
    minutes: float = MINUTES


class Outdated(Exception):
    """The checkpoint is of other code; it is gone now, and the run begins afresh."""


class Checkpoint:
    """The checkpoint of one run; without a folder there is none."""

    def __init__(self, where: Checkpoints | None, run_id: str):
        self.path = None if where is None else Path(where.folder) / f"{run_id}.pt"
        self.every = 0.0 if where is None else 60 * where.minutes
        self._last = time.monotonic()

    def load(self, device: str) -> dict[str, Any] | None:
        """The state as it was saved, random numbers restored; None where there is none that can be gone on from."""
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["code"] != _code(device):
                raise ValueError("it is of other code, or of another device")
            torch.set_rng_state(state["rng"])
            if device == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"])
        except OSError:  # the disk's trouble, not the file's: another try may read it
            raise
        except Exception as error:  # cut off, or of something else: the run begins afresh
            if of_the_machine(error):
                raise
            self.remove()
            return None
        return state

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Inside, a state is taken up. What does not fit is removed, and the run begun again: see `Outdated`."""
        try:
            yield
        except (KeyError, RuntimeError, ValueError) as error:
            if of_the_machine(error):
                raise
            self.remove()
            raise Outdated(str(error)) from error

    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self._last >= self.every

    def save(self, device: str, state: dict[str, Any]) -> None:
        """Write the state and that of the random numbers; a full disk costs the checkpoint, not the run."""
        assert self.path is not None
        state = state | {"code": _code(device), "rng": torch.get_rng_state()}
        if device == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for cut_off in self.path.parent.glob(f"{self.path.name}.*.tmp"):  # of a process that was killed
                cut_off.unlink()
            replace(self.path, buffer.getbuffer())
        self._last = time.monotonic()

    def remove(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()


def of_the_machine(error: Exception) -> bool:
    """Whether the checkpoint may be good: memory ran out, or the GPU was lost."""
    return out_of_memory(error) or isinstance(error, torch.AcceleratorError)


def _code(device: str) -> list[str]:
    """What decides the curve besides the configuration: two kinds of code, or of device, must not share one."""
    return [str(host.git_commit()), *map(str, host.versions().items()), str(host.device_name(device))]
