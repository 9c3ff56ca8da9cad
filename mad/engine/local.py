"""Worker processes on this machine: on a CPU one single-threaded process per core, on CUDA one per device.

Every worker is a pebble pool of one process, so that it keeps its device, is replaced when it dies, and takes no
other worker with it. Results come back through pebble; progress through a pipe that has one writer, for a process
killed while it holds the lock of a shared queue would silence all the others.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection, wait
from typing import Any

from pebble import ProcessPool

from mad.config import Run
from mad.engine.base import Engine, Event, Work, attempt, failed, registry
from mad.records import Record

PRELOAD = ["mad.training"]  # imported once, in the server that workers are forked from


@registry.register("local")
class Local(Engine):
    """Worker processes on this machine.

    Args:
        work: see Engine.
        workers: processes; None: one per core, or on CUDA one per device (more share the devices in turn).
    """

    def __init__(self, work: Work | None = None, *, workers: int | None = None):
        super().__init__(work)
        if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            raise ValueError(f"engine.workers must be a whole number of at least 1, or null for all, got {workers!r}")
        self.workers = workers

    def run(self, runs: list[Run], *, on_event: Callable[[Event], None] | None = None) -> Generator[Record, None, None]:
        tell = on_event or (lambda event: None)
        pending = list(reversed(runs))
        devices = cuda_devices() if any(run.device == "cuda" for run in runs) else []
        number = min(self.workers or len(devices) or cores(), len(runs))
        context = _context()
        woken, wake = context.Pipe(duplex=False)  # a finished future writes here, so that one `wait` sees everything
        workers: list[_Worker] = []
        try:
            for index in range(number):
                device = devices[index % len(devices)] if devices else None
                workers.append(_Worker(index, context, self.work, device, wake))
            while pending or any(worker.busy for worker in workers):
                for worker in workers:
                    if pending and not worker.busy:
                        run = pending.pop()
                        worker.start(run)
                        tell(Event(worker.index, run))
                # the timeout is for Ctrl-C: a signal that comes just before the wait begins does not interrupt it
                ready = wait([woken, *(worker.progress for worker in workers)], timeout=0.5)
                for worker in workers:
                    for progress in worker.told():
                        if worker.run is not None:
                            tell(Event(worker.index, worker.run, progress))
                if woken in ready:
                    yield workers[woken.recv()].finish()
        finally:
            for worker in workers:
                worker.pool.stop()  # all at once, then wait for each
            for worker in workers:
                worker.close()
            woken.close()
            wake.close()


class _Worker:
    """One process, or the next one in its place, and the run it has."""

    def __init__(self, index: int, context: Any, work: Work | None, device: str | None, wake: Connection):
        self.index, self.context, self.work, self.device, self.wake = index, context, work, device, wake
        self.run: Run | None = None
        self.future: Future | None = None
        self._open()

    @property
    def busy(self) -> bool:
        return self.run is not None

    def start(self, run: Run) -> None:
        if not self.pool.active:  # the process died between two runs
            self._reopen()
        self.run = run
        self.future = self.pool.schedule(_execute, args=(run,))
        self.future.add_done_callback(lambda future: self.wake.send(self.index))

    def told(self) -> Iterator[dict[str, Any]]:
        """The progress messages that have arrived."""
        while self.progress.poll():
            yield self.progress.recv()

    def finish(self) -> Record:
        """The record of the run that has ended, however it ended."""
        run, future = self.run, self.future
        assert run is not None and future is not None
        self.run = self.future = None
        error = future.exception()
        record = future.result() if error is None else failed(run, self._explain(error))
        if not self.pool.active or (record.status == "failed" and self.device is not None):
            self._reopen()  # a CUDA error may leave a context in which every later run fails too
        return record

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()
        self.progress.close()
        self._told.close()

    def _reopen(self) -> None:
        self.close()
        self._open()

    def _open(self) -> None:
        self.progress, self._told = self.context.Pipe(duplex=False)
        self.pool = ProcessPool(
            max_workers=1, context=self.context, initializer=_initialise, initargs=(self.work, self.device, self._told)
        )

    def _explain(self, error: BaseException) -> str:
        code = getattr(error, "exitcode", None)
        if not isinstance(code, int):
            return f"{type(error).__name__}: the worker process could not do the run: {error}"
        with contextlib.suppress(ValueError):
            killer = signal.Signals(-code).name
            hint = "; the machine may be out of memory, try fewer engine.workers" if killer == "SIGKILL" else ""
            return f"WorkerKilled: the worker process was ended by {killer}{hint}"
        return f"WorkerKilled: the worker process exited with status {code}"


# ----------------------------------------------------------------------------------------------------------------------
# In the worker

_work: Work | None = None
_told: Connection | None = None


def _initialise(work: Work | None, device: str | None, told: Connection) -> None:
    """Once in each worker, before its first run."""
    global _work, _told
    _work, _told = work, told
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before CUDA starts
    else:
        import torch

        torch.set_num_threads(1)  # data generation too: the other cores belong to the other workers


def _execute(run: Run) -> Record:
    assert _told is not None
    return attempt(_work, run, _told.send)


# ----------------------------------------------------------------------------------------------------------------------
# The machine


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
