"""Worker processes on this machine: on a CPU one single-threaded process per core, on CUDA one per device.

What a worker is, and what becomes of its runs when it dies: `mad.engine.process`. What happens in it:
`mad.engine.worker`.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any

from mad.config import Run, by_shape
from mad.engine import worker as inside
from mad.engine.base import (
    Claim,
    Engine,
    Event,
    Pending,
    Work,
    lanes_or_none,
    positive_or_none,
    registry,
    share_out,
    workers_or_none,
)
from mad.engine.process import LaneWorker, Worker
from mad.records import Record

# imported once, in the server that workers are forked from; the latter torch's optimisers would, in their first step
PRELOAD = ["mad.training", "torch._dynamo"]


@registry.register("local")
class Local(Engine):
    """Worker processes on this machine.

    Args:
        work, retries, retry_on: see Engine.
        workers: processes; None: one per core, or on CUDA one per device (more share the devices in turn).
        lanes: runs at once in a process, for training; None: 1, or on CUDA as many as make all of them faster, measured
            while they train: at most 8, and one for each 8 GB of free memory.
        timeout: seconds a run may take, what other lanes do meanwhile included; None: any.
        memory: GB a worker on a CPU may allocate (Linux); None: what there is.
    """

    def __init__(
        self,
        work: Work | None = None,
        *,
        workers: int | None = None,
        lanes: int | None = None,
        timeout: float | None = None,
        memory: float | None = None,
        retries: int = 1,
        retry_on: tuple[str, ...] = (),
    ):
        super().__init__(work, retries=retries, retry_on=retry_on)
        self.workers = workers_or_none(workers)
        self.lanes = lanes_or_none(lanes, work)
        self.timeout, self.memory = positive_or_none("timeout", timeout), positive_or_none("memory", memory)
        if memory is not None and not inside.CAN_LIMIT_MEMORY:
            raise ValueError("engine.memory needs Linux; expected null here")

    def run(
        self, runs: list[Run], *, claim: Claim | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Generator[Record, None, None]:
        tell = on_event or (lambda event: None)
        devices = cuda_devices() if any(run.device == "cuda" for run in runs) else []
        several = self.work is None and (bool(devices) or (self.lanes or 1) > 1)
        pending = Pending(sorted(runs, key=by_shape) if several else runs, claim, self.retries)
        number = min(self.workers or len(devices) or cores(), len(runs))
        context = _context()
        woken, wake = context.Pipe(duplex=False)  # a finished future writes here, so that one `wait` sees everything
        lifeline, held = context.Pipe(duplex=False)  # workers read the end of this process from it
        kind = LaneWorker if several else Worker  # on CUDA with one lane, too: what is compiled and captured is kept
        workers: list[Worker] = []
        try:
            for index in range(number):
                device = devices[index % len(devices)] if devices else None
                workers.append(kind(index, context, self, device, wake, lifeline, self.lanes))
            while pending or any(worker.runs for worker in workers):
                for run, worker in share_out(pending, workers):
                    with _whole():
                        worker.start(run)
                    tell(Event(worker.index, run))
                # the timeout is for Ctrl-C: a signal that comes just before the wait begins does not interrupt it
                ready = wait([woken, *(worker.messages for worker in workers)], timeout=0.5)
                if woken in ready:
                    woken.recv()
                for worker in workers:
                    for run, progress in worker.told():
                        tell(Event(worker.index, run, progress))
                    worker.watch()
                    for run, outcome in worker.ended():
                        record = pending.settle(run, outcome)
                        if record is not None:
                            yield record
                        else:
                            tell(Event(worker.index, run, again=True))
        finally:
            for worker in workers:
                worker.pool.stop()  # all at once, then wait for each
            for worker in workers:
                worker.close()
            for end in (woken, wake, lifeline, held):
                end.close()


def _context() -> Any:
    """Workers fork from a server that has imported torch but started neither threads nor CUDA; where there is no
    such server (Windows) they start afresh."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with _deaf():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _hearing(handler: Any) -> Iterator[None]:
    """Inside, Ctrl-C goes to `handler`; in a thread that it does not reach, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _deaf() -> contextlib.AbstractContextManager[None]:
    """Without an ear for Ctrl-C, which a process begun inside inherits: the server imports for seconds before it turns
    its own away."""
    return _hearing(signal.SIG_IGN)


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """A process that starts inside has started at the end, or never will: one whose start Ctrl-C cut off, as it waited
    for all that the server imports, would be nobody's, and be heard of by a traceback once it did begin."""
    came = []

    def end_the_server(*_: object) -> None:
        came.append(True)
        server = getattr(forkserver._forkserver, "_forkserver_pid", None)
        if server is not None:  # the next engine has one of its own
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(server, signal.SIGKILL)
                if hasattr(os, "waitid"):  # it dies a moment later: who looked now would take it for alive
                    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)

    try:
        with _hearing(end_the_server):
            yield
    except Exception:
        if not came:
            raise
    if came:
        signal.raise_signal(signal.SIGINT)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cuda_devices() -> list[str]:
    """The devices this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [str(index) for index in range(torch.cuda.device_count())]
    return visible.split(",")[: len(numbers)] if visible else numbers
