"""Inside a worker process: its limits, its run, and what it leaves behind when it cannot say so itself."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from concurrent.futures import TimeoutError as RanOutOfTime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from mad.config import Run
from mad.engine.base import Work, attempt
from mad.records import Record

CAN_LIMIT_MEMORY = sys.platform == "linux"
OUT_OF_MEMORY_KILLS = ("/sys/fs/cgroup/memory.events", "/proc/vmstat")  # where the kernel counts them

_work: Work | None = None
_checkpoints: Path | None = None
_told: Connection | None = None
_trace: TextIO | None = None


def initialise(
    work: Work | None, checkpoints: Path | None, device: str | None, memory: float | None, told: Connection,
    lifeline: Connection, trace: str,
) -> None:  # fmt: skip
    """Once in each worker, before its first run."""
    global _work, _checkpoints, _told, _trace
    _work, _checkpoints, _told = work, checkpoints, told
    _trace = open(trace, "w")  # noqa: SIM115 - open as long as the process
    faulthandler.enable(_trace)  # a crash in native code has a traceback too
    threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before CUDA starts
        return
    import torch

    torch.set_num_threads(1)  # data generation too: the other cores belong to the other workers
    if memory is not None:
        import resource

        # private data alone: libraries reserve far more address space than they use
        limit = int(memory * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def execute(run: Run, timeout: float | None) -> Record:
    assert _told is not None and _trace is not None
    if timeout is not None:  # shortly before the process is stopped, it writes where it is
        faulthandler.dump_traceback_later(max(0.9 * timeout, timeout - 1), file=_trace)
    try:
        return attempt(_work, run, _told.send, _checkpoints)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _end_with(lifeline: Connection) -> None:
    """A worker whose parent was killed ends too: nothing would take its results."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)


def explain(error: BaseException, timeout: float | None, killed_before: int) -> tuple[str, str]:
    """(failure, reason) of a run whose process ended without a record."""
    if isinstance(error, (TimeoutError, RanOutOfTime)):
        return "timeout", f"TimeoutError: the run took longer than engine.timeout={timeout:g} seconds"
    code: Any = getattr(error, "exitcode", None)
    if not isinstance(code, int):
        return "exception", f"{type(error).__name__}: the worker process could not do the run: {error}"
    try:
        killer = signal.Signals(-code).name
    except ValueError:
        return "killed", f"WorkerKilled: the worker process exited with status {code}"
    if killer == "SIGKILL" and out_of_memory_kills() > killed_before:
        return "memory", "WorkerKilled: the machine ran out of memory and ended the process; try fewer engine.workers"
    hint = "; the machine may be out of memory, try fewer engine.workers" if killer == "SIGKILL" else ""
    return "killed", f"WorkerKilled: the worker process was ended by {killer}{hint}"


def out_of_memory_kills() -> int:
    """How many processes the kernel has ended for want of memory, here (or in this container); 0 where it says not."""
    total = 0
    for path in OUT_OF_MEMORY_KILLS:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    total += int(line.split()[1])
    return total
