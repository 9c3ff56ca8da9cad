"""A worker of the engine `local`: a process, or the next one in its place, and the runs it has.

It is a pebble pool of one process, so that it keeps its device, is replaced when it dies, and takes no other worker
with it. Messages come through a pipe that has one writer, for a process killed while it holds the lock of a shared
queue would silence all the others. What happens inside is in `mad.engine.worker`.
"""

import contextlib
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pebble import ProcessPool

from mad.config import Run
from mad.engine import worker as inside
from mad.engine.base import Outcome, failed
from mad.engine.worker import GRACE

VANISHED = 2.0  # seconds without its process after which a run is given up

Progress = dict[str, Any]


class Worker:
    """One run at a time, in a process of its own."""

    lanes = 1  # runs at once

    def __init__(
        self, index: int, context: Any, engine: Any, device: str | None, wake: Connection, lifeline: Connection,
        lanes: int | None = None,
    ):  # fmt: skip
        self.index, self.context, self.engine, self.device = index, context, engine, device
        self.wake, self.lifeline, self.wanted = wake, lifeline, lanes
        self.runs: dict[str, Run] = {}  # that it has
        self.future: Any = None
        self._open()

    @property
    def room(self) -> int:
        """Runs it takes now."""
        return max(0, self.lanes - len(self.runs))

    def start(self, run: Run) -> None:
        self._fresh()
        self.runs[run.id] = run
        self._schedule(inside.execute, run, self.engine.timeout)

    def told(self) -> Iterator[tuple[Run, Progress]]:
        """The progress that has been told since the last look."""
        while self.messages.poll():
            message = self.messages.recv()
            if inside.LANES in message:
                self.lanes = message[inside.LANES]
            elif inside.BEGUN in message:
                if message[inside.BEGUN] is None:
                    self.begun.pop(message[inside.RUN], None)
                else:
                    self.pid = message[inside.BEGUN]
                    self.begun[message[inside.RUN]] = time.monotonic()
            elif run := self.runs.get(message.pop(inside.RUN)):
                yield run, message

    def watch(self) -> None:
        """Stop the process where a run's time is up, by a clock that does not jump, or it has gone without a word."""
        if not self.runs or not self.begun or self.stopped or self.future.done():
            return
        now, limit = time.monotonic(), self.engine.timeout
        late = {run_id for run_id, begun in self.begun.items() if run_id in self.runs and now - begun > (limit or now)}
        if late and self._give_up(late, now):
            self.stopped, self.late = "late", self._at() & set(self.runs) or late  # it does not let the late one end
        elif self.pid is not None and not inside.exists(self.pid):
            self.missed = self.missed or now
            if now - self.missed > VANISHED:  # pebble had time to notice, and did not
                self.stopped = "vanished"
        if self.stopped and not self.future.cancel():  # it has just ended by itself
            self.stopped = None

    def _give_up(self, late: set[str], now: float) -> bool:
        return True

    def _at(self) -> set[str]:
        """The run whose turn it is in the process."""
        return set(self.runs)

    def ended(self) -> list[tuple[Run, Outcome]]:
        """What became of the runs that have ended since the last look, however they ended."""
        if self.future is None or not self.future.done():
            return []
        for _ in self.told():  # nobody hears it any more, but it says where the run was
            pass
        (run,), future = self.runs.values(), self.future
        self.runs, self.future = {}, None
        error = None if self.stopped else future.exception()
        outcome = future.result() if error is None and not self.stopped else self._lost(run, error)
        spoilt = outcome.record.status == "failed" and (self.device is not None or outcome.record.failure == "memory")
        if not self.pool.active or self.stopped or spoilt:
            # after a CUDA error every later run may fail too, and what filled the memory may still be there
            self._reopen()
        return [(run, outcome)]

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()
        self.messages.close()
        self._told.close()
        shutil.rmtree(self.traces, ignore_errors=True)

    def _fresh(self) -> None:
        if not self.pool.active:  # the process died between two runs
            self._reopen()
        self.begun, self.pid, self.missed = {}, None, None
        self.stopped: str | None = None  # why its process was stopped from here
        self.killed_before = inside.out_of_memory_kills()

    def _schedule(self, function: Any, *given: Any) -> None:
        self.future = self.pool.schedule(function, args=given)
        self.future.add_done_callback(lambda future: self.wake.send(self.index))

    def _reopen(self) -> None:
        self.close()
        self._open()

    def _open(self) -> None:
        self.messages, self._told = self.context.Pipe(duplex=False)
        self.begun: dict[str, float] = {}  # when the runs were
        self.late: set[str] = set()
        self.pid = self.missed = self.stopped = None
        # where processes that are about to be stopped, or crash, leave their tracebacks, each its own
        self.traces = Path(tempfile.mkdtemp(prefix="mad-traces-"))
        given = (self.engine.work, self.engine.checkpoints, self.engine.retry_on, self.device, self.engine.memory)
        self.pool = ProcessPool(
            max_workers=1, context=self.context, initializer=inside.initialise,
            initargs=(*given, self._told, self.lifeline, str(self.traces), *self._more()),
        )  # fmt: skip

    def _more(self) -> tuple[Any, ...]:
        return ()

    def _lost(self, run: Run, error: BaseException | None) -> Outcome:
        if self.stopped == "late" and run.id in self.late:
            failure, reason = "timeout", inside.too_late(self.engine.timeout)
        elif self.stopped == "late":
            failure, reason = "killed", inside.HELD_UP
        elif error is None:
            failure, reason = "killed", "WorkerKilled: the worker process ended in mid-run, with status 0"
        else:
            failure, reason = inside.explain(error, self.killed_before)
        trace = ""
        with contextlib.suppress(OSError):
            trace = (self.traces / str(self.pid)).read_text(errors="replace").strip()
        return Outcome(failed(run, f"{trace}\n{reason}" if trace else reason, failure), failure != "exception")


class LaneWorker(Worker):
    """Several runs at once, in one process (`training.interleave`), which are handed to it as they find room."""

    closing = False  # a new process is to take the next runs

    @property
    def room(self) -> int:
        return 0 if self.closing else super().room

    def start(self, run: Run) -> None:
        if self.future is None:
            self._fresh()
            self._schedule(inside.serve, self.wanted, self.engine.timeout)
        self.runs[run.id] = run
        with contextlib.suppress(OSError):  # it has just died, and `ended` will say so
            self._give.send(run)

    def told(self) -> Iterator[tuple[Run, Progress]]:
        for run, message in super().told():
            if inside.OUTCOME in message:
                file = self.traces / f"{run.id}{inside.OUTCOME}"
                self._outcomes.append((run, pickle.loads(file.read_bytes())))
                file.unlink()
            else:
                yield run, message

    def _at(self) -> set[str]:
        try:
            return {(self.traces / f"{self.pid}{inside.TURN}").read_text()}
        except OSError:
            return set()

    def _give_up(self, late: set[str], now: float) -> bool:
        over = any(now - self.begun[run_id] > self.engine.timeout + GRACE for run_id in late)
        if over:
            inside.say_where(self.pid)
        return over

    def ended(self) -> list[tuple[Run, Outcome]]:
        future = self.future
        dead = future is not None and future.done()
        if dead:
            for _ in self.told():  # outcomes that it could still send
                pass
        ended, self._outcomes = self._outcomes, []
        for run, outcome in ended:
            self.runs.pop(run.id, None)
            self.begun.pop(run.id, None)
            self.closing |= outcome.record.failure == "memory"  # what filled it may still be there
        if dead:
            assert future is not None
            error = None if self.stopped else future.exception()
            guilty = (self.late or self._at() & set(self.runs) or set(self.runs)) & set(self.begun)
            unsure = len(self.begun) > 1  # an error of the device may come to light in the turn of another run
            for run in self.runs.values():
                outcome, blameless = self._lost(run, error), run.id not in guilty
                ended.append((run, outcome._replace(again=outcome.again or blameless or unsure, blameless=blameless)))
            self.runs = {}
        if dead or (self.closing and not self.runs):
            self.future = None
            self._reopen()
        return ended

    def close(self) -> None:
        super().close()
        self._give.close()
        self._inbox.close()

    def _open(self) -> None:
        self.closing, self.lanes = False, self.wanted or 1  # until it has said how many
        self._outcomes: list[tuple[Run, Outcome]] = []
        self._inbox, self._give = self.context.Pipe(duplex=False)
        super()._open()

    def _more(self) -> tuple[Any, ...]:
        return (self._inbox,)
