"""Inside a worker process: its limits, its run, and what it leaves behind when it cannot say so itself."""

import contextlib
import faulthandler
import functools
import mmap
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from mad.config import Run
from mad.engine.base import Outcome, Work, attempt, attempts

CAN_LIMIT_MEMORY = sys.platform == "linux"
OUT_OF_MEMORY_KILLS = ("/sys/fs/cgroup/memory.events", "/proc/vmstat")  # where the kernel counts them

GRACE = 60.0  # seconds that a process with several runs has to end a late one itself: another may be compiled just then
HELD_UP = "WorkerKilled: another run in the same process took too long and did not yield"

BEGUN = "begun"  # key of the message with which a run begins: the process's number, or None: it must wait after all
RUN = "run"  # of every message about a run: its id
LANES = "lanes"  # of the message that says how many runs a process takes at once
TURN = ".turn"  # ending of the file that holds the id of the run which a process with several is at
OUTCOME = ".outcome"  # of the message with which one of several runs ends; and of the file that says how

_work: Work | None = None
_checkpoints: Path | None = None
_retry_on: tuple[str, ...] = ()
_told: Connection | None = None
_trace: TextIO | None = None
_inbox: Connection | None = None


def initialise(
    work: Work | None, checkpoints: Path | None, retry_on: tuple[str, ...], device: str | None, memory: float | None,
    told: Connection, lifeline: Connection, traces: str, inbox: Connection | None = None,
) -> None:  # fmt: skip
    """Once in each worker, before its first run."""
    global _work, _checkpoints, _retry_on, _told, _trace, _inbox
    _work, _checkpoints, _retry_on, _told, _inbox = work, checkpoints, retry_on, told, inbox
    _trace = open(Path(traces, str(os.getpid())), "w")  # noqa: SIM115 - open as long as the process
    faulthandler.enable(_trace)  # a crash in native code has a traceback too
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, file=_trace)
    threading.Thread(target=_end_with, args=(lifeline, traces), name="lifeline", daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before CUDA starts
        return
    import torch

    torch.set_num_threads(1)  # data generation too: the other cores belong to the other workers
    if memory is not None:
        import resource

        # private data alone: libraries reserve far more address space than they use
        limit, held = int(memory * 1e9), _data()
        if limit > held:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        else:
            _work = functools.partial(
                _refuse, f"engine.memory={memory:g}: a worker holds {held / 1e9:.2g} GB before its first run"
            )


def _data() -> int:
    """Bytes of private data that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


def _refuse(why: str, run: Run, on_progress: Any) -> Any:
    raise MemoryError(why)


def execute(run: Run, timeout: float | None) -> Outcome:
    assert _told is not None and _trace is not None
    _trace.seek(0)
    _trace.truncate()  # what an earlier run left, which came in time after all
    told = _told
    told.send({RUN: run.id, BEGUN: os.getpid()})
    if timeout is not None:  # shortly before the process is stopped, it writes where it is
        faulthandler.dump_traceback_later(max(0.9 * timeout, timeout - 1), file=_trace)
    try:
        return attempt(_work, run, lambda progress: told.send({RUN: run.id, **progress}), _checkpoints, _retry_on)
    finally:
        faulthandler.cancel_dump_traceback_later()


def serve(lanes: int | None, timeout: float | None) -> None:
    """Train the runs that come, `lanes` or as many as pay at once, until nobody sends any more."""
    assert _told is not None and _trace is not None
    told, traces = _told, Path(_trace.name).parent
    turn = traces / f"{os.getpid()}{TURN}"
    turn.write_bytes(b" " * 16)
    with turn.open("r+b") as file, mmap.mmap(file.fileno(), 16) as whose:
        for run, outcome in attempts(
            _handed_out(),
            lanes,
            lambda lanes: told.send({LANES: lanes}),
            _checkpoints,
            timeout,
            _retry_on,
            on_progress=lambda run, progress: told.send({RUN: run.id, **progress}),
            on_turn=lambda run: whose.__setitem__(slice(16), run.id.encode()),
            on_begin=lambda run, begun: told.send({RUN: run.id, BEGUN: os.getpid() if begun else None}),
        ):
            # by a file: a message of this size could be cut off where the process dies, and be waited for for ever
            (traces / f"{run.id}{OUTCOME}").write_bytes(pickle.dumps(outcome))
            told.send({RUN: run.id, OUTCOME: True})


def _handed_out() -> Iterator[Run | None]:
    """The runs from the inbox; None: there is none for now."""
    assert _inbox is not None
    with contextlib.suppress(EOFError):
        while True:
            yield _inbox.recv() if _inbox.poll() else None


def say_where(pid: int | None) -> None:
    """Have a process write where it is, if it can, before it is stopped."""
    if pid is not None and hasattr(signal, "SIGUSR1"):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.2)


def _end_with(lifeline: Connection, traces: str) -> None:
    """A worker whose parent was killed ends too: nothing would take its results."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    shutil.rmtree(traces, ignore_errors=True)
    os._exit(1)


def too_late(timeout: float | None) -> str:
    return f"TimeoutError: the run took longer than engine.timeout={timeout:g} seconds"


def explain(error: BaseException, killed_before: int) -> tuple[str, str]:
    """(failure, reason) of a run whose process ended without a record."""
    code: Any = getattr(error, "exitcode", None)
    if not isinstance(code, int):
        failure = "killed" if isinstance(error, BrokenProcessPool) else "exception"
        return failure, f"{type(error).__name__}: the worker process could not do the run: {error}"
    try:
        killer = signal.Signals(code if code == signal.SIGTERM else -code).name  # pebble's handler exits with 15
    except ValueError:
        return "killed", f"WorkerKilled: the worker process exited with status {code}"
    if killer == "SIGKILL" and out_of_memory_kills() > killed_before:
        return "memory", "WorkerKilled: the machine ran out of memory and ended the process; try fewer engine.workers"
    hint = "; the machine may be out of memory, try fewer engine.workers" if killer == "SIGKILL" else ""
    return "killed", f"WorkerKilled: the worker process was ended by {killer}{hint}"


def exists(pid: int) -> bool:
    """Whether there is such a process. True where that cannot be asked without harm."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def out_of_memory_kills() -> int:
    """How many processes the kernel has ended for want of memory, here (or in this container); 0 where it says not."""
    total = 0
    for path in OUT_OF_MEMORY_KILLS:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    total += int(line.split()[1])
    return total
