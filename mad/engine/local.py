"""Worker processes on this machine: on a CPU one single-threaded process per core, on CUDA one per device.

Every worker is a pebble pool of one process, so that it keeps its device, is replaced when it dies, and takes no
other worker with it. Results come back through pebble; progress through a pipe that has one writer, for a process
killed while it holds the lock of a shared queue would silence all the others. What happens in a worker is in
`mad.engine.worker`.
"""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pebble import ProcessPool

from mad.config import Run
from mad.engine import worker as inside
from mad.engine.base import (
    Claim,
    Engine,
    Event,
    Outcome,
    Pending,
    Work,
    failed,
    positive_or_none,
    registry,
    workers_or_none,
)
from mad.records import Record

VANISHED = 2.0  # seconds without its process after which a run is given up
PRELOAD = ["mad.training"]  # imported once, in the server that workers are forked from


@registry.register("local")
class Local(Engine):
    """Worker processes on this machine.

    Args:
        work, retries, retry_on: see Engine.
        workers: processes; None: one per core, or on CUDA one per device (more share the devices in turn).
        timeout: seconds a run may take; None: any.
        memory: GB a worker on a CPU may allocate (Linux); None: what there is.
    """

    def __init__(
        self,
        work: Work | None = None,
        *,
        workers: int | None = None,
        timeout: float | None = None,
        memory: float | None = None,
        retries: int = 1,
        retry_on: tuple[str, ...] = (),
    ):
        super().__init__(work, retries=retries, retry_on=retry_on)
        self.workers = workers_or_none(workers)
        self.timeout, self.memory = positive_or_none("timeout", timeout), positive_or_none("memory", memory)
        if memory is not None and not inside.CAN_LIMIT_MEMORY:
            raise ValueError("engine.memory needs Linux; expected null here")

    def run(
        self, runs: list[Run], *, claim: Claim | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Generator[Record, None, None]:
        tell = on_event or (lambda event: None)
        pending = Pending(runs, claim, self.retries)
        devices = cuda_devices() if any(run.device == "cuda" for run in runs) else []
        number = min(self.workers or len(devices) or cores(), len(runs))
        context = _context()
        woken, wake = context.Pipe(duplex=False)  # a finished future writes here, so that one `wait` sees everything
        lifeline, held = context.Pipe(duplex=False)  # workers read the end of this process from it
        workers: list[_Worker] = []
        try:
            for index in range(number):
                device = devices[index % len(devices)] if devices else None
                workers.append(_Worker(index, context, self, device, wake, lifeline))
            while pending or any(worker.busy for worker in workers):
                for worker in workers:
                    run = None if worker.busy else pending.next()
                    if run is not None:
                        worker.start(run)
                        tell(Event(worker.index, run))
                # the timeout is for Ctrl-C: a signal that comes just before the wait begins does not interrupt it
                ready = wait([woken, *(worker.progress for worker in workers)], timeout=0.5)
                for worker in workers:
                    for progress in worker.told():
                        if worker.run is not None:
                            tell(Event(worker.index, worker.run, progress))
                    worker.watch(self.timeout)
                if woken in ready:
                    worker = workers[woken.recv()]
                    run = worker.run
                    assert run is not None
                    record = pending.settle(run, worker.finish())
                    if record is not None:
                        yield record
        finally:
            for worker in workers:
                worker.pool.stop()  # all at once, then wait for each
            for worker in workers:
                worker.close()
            for end in (woken, wake, lifeline, held):
                end.close()


class _Worker:
    """One process, or the next one in its place, and the run it has."""

    def __init__(
        self, index: int, context: Any, engine: Local, device: str | None, wake: Connection, lifeline: Connection
    ):
        self.index, self.context, self.engine, self.device, self.wake = index, context, engine, device, wake
        self.lifeline = lifeline
        self.run: Run | None = None
        self.future: Any = None
        self._open()

    @property
    def busy(self) -> bool:
        return self.run is not None

    def start(self, run: Run) -> None:
        if not self.pool.active:  # the process died between two runs
            self._reopen()
        self.run, self.begun, self.pid, self.missed = run, None, None, None
        self.stopped: str | None = None  # why its process was stopped from here
        self.killed_before = inside.out_of_memory_kills()
        self.future = self.pool.schedule(inside.execute, args=(run, self.engine.timeout))
        self.future.add_done_callback(lambda future: self.wake.send(self.index))

    def told(self) -> Iterator[dict[str, Any]]:
        """The progress messages that have arrived."""
        while self.progress.poll():
            message = self.progress.recv()
            if inside.BEGUN in message:
                self.begun, self.pid = time.monotonic(), message[inside.BEGUN]
            else:
                yield message

    def watch(self, timeout: float | None) -> None:
        """Stop a run whose time is up, by a clock that does not jump, and one whose process has gone without a word."""
        if self.run is None or self.begun is None or self.stopped or self.future.done():
            return
        if timeout is not None and time.monotonic() - self.begun > timeout:
            self.stopped = "late"
        elif self.pid is not None and not inside.exists(self.pid):
            if self.missed is None:
                self.missed = time.monotonic()
            if time.monotonic() - self.missed > VANISHED:  # pebble had time to notice, and did not
                self.stopped = "vanished"
        if self.stopped and not self.future.cancel():  # it has just ended by itself
            self.stopped = None

    def finish(self) -> Outcome:
        """What became of the run that has ended, however it ended."""
        run, future = self.run, self.future
        assert run is not None and future is not None
        self.run = self.future = None
        error = None
        if not self.stopped:
            error = future.exception()
        outcome = future.result() if error is None and not self.stopped else self._lost(run, error)
        spoilt = outcome.record.status == "failed" and (self.device is not None or outcome.record.failure == "memory")
        if not self.pool.active or self.stopped or spoilt:
            # after a CUDA error every later run may fail too, and what filled the memory may still be there
            self._reopen()
        return outcome

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()
        self.progress.close()
        self._told.close()
        shutil.rmtree(self.traces, ignore_errors=True)

    def _reopen(self) -> None:
        self.close()
        self._open()

    def _open(self) -> None:
        self.progress, self._told = self.context.Pipe(duplex=False)
        self.pid = self.begun = self.missed = self.stopped = None
        # where processes that are about to be stopped, or crash, leave their tracebacks, each its own
        self.traces = Path(tempfile.mkdtemp(prefix="mad-traces-"))
        given = (self.engine.work, self.engine.checkpoints, self.engine.retry_on, self.device, self.engine.memory)
        self.pool = ProcessPool(
            max_workers=1, context=self.context, initializer=inside.initialise,
            initargs=(*given, self._told, self.lifeline, str(self.traces)),
        )  # fmt: skip

    def _lost(self, run: Run, error: BaseException | None) -> Outcome:
        if self.stopped == "late":
            failure, reason = "timeout", inside.too_late(self.engine.timeout)
        elif error is None:
            failure, reason = "killed", "WorkerKilled: the worker process ended in mid-run, with status 0"
        else:
            failure, reason = inside.explain(error, self.killed_before)
        trace = ""
        with contextlib.suppress(OSError):
            trace = (self.traces / str(self.pid)).read_text(errors="replace").strip()
        return Outcome(failed(run, f"{trace}\n{reason}" if trace else reason, failure), failure != "exception")


def _context() -> Any:
    """Workers fork from a server that has imported torch but started neither threads nor CUDA; where there is no
    such server (Windows) they start afresh."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cuda_devices() -> list[str]:
    """The devices this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [str(index) for index in range(torch.cuda.device_count())]
    return visible.split(",")[: len(numbers)] if visible else numbers
