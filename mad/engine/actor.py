"""A worker of the engine `ray`: an actor, or the next one in its place, and the runs it has.

Inside the actor a thread does the runs that come, one after the other or, in training, several at once
(`training.interleave`); it is asked again and again what has ended.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mad.config import Run
from mad.engine.base import POLL, Outcome, Work, attempt, failed, outcome_of
from mad.engine.worker import too_late

GRACE = 60.0  # seconds that an actor with several runs has to end a late one itself: another may be compiled just then


class Given(NamedTuple):
    """What an actor works with. lanes: runs at once, None: as many as pay; 1: one, of any work."""

    work: Work | None
    checkpoints: Path | None
    retry_on: tuple[str, ...]
    lanes: int | None
    timeout: float | None


class Actor:
    """In a process of Ray's."""

    def __init__(self, given: Given):
        if given.work is None:
            import torch._dynamo  # noqa: F401 - what an optimiser imports in its first step

            import mad.training  # noqa: F401 - now, not in the time of the first run
        self.given, self.lanes = given, given.lanes or 1
        self.inbox: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[tuple[str, Outcome] | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="runs", daemon=True).start()

    def give(self, run: Run) -> None:
        self.inbox.put(run)

    def look(self, patience: float) -> tuple[int, list[tuple[str, Outcome]]]:
        """How many runs it takes at once, and what became of those that have ended; it waits so long for one."""
        ended = []
        with contextlib.suppress(queue.Empty):
            while True:
                item = self.ended.get(timeout=patience) if patience and not ended else self.ended.get_nowait()
                if isinstance(item, BaseException):
                    raise item
                ended.append(item)
        return self.lanes, ended

    def _serve(self) -> None:
        import torch

        torch.set_num_threads(1)  # the other cores belong to the other actors
        work, checkpoints, retry_on, lanes, _ = self.given
        try:
            if lanes != 1:
                self._interleave()
            while True:
                run = self.inbox.get()
                self.ended.put((run.id, attempt(work, run, lambda progress: None, checkpoints, retry_on)))
        except BaseException as error:
            self.ended.put(error)

    def _interleave(self) -> None:
        from mad import training

        _, checkpoints, retry_on, lanes, timeout = self.given
        pace = training.Pace(lanes or training.how_many(), lanes or 1, tell=lambda lanes: setattr(self, "lanes", lanes))
        self.lanes = pace.lanes
        where = None if checkpoints is None else training.Checkpoints(checkpoints)
        for ended in training.interleave(self._handed_out(), pace, None, where, timeout):
            self.ended.put((ended.run.id, outcome_of(ended, retry_on)))

    def _handed_out(self) -> Iterator[Run | None]:
        while True:
            try:
                yield self.inbox.get_nowait()
            except queue.Empty:
                yield None


class Worker:
    """One actor, or the next one in its place, and the runs it has.

    An actor that dies with several runs does not say whose fault it was. They are begun again without counting it, and
    the next actor takes one at a time, so that whoever kills that one is known.
    """

    def __init__(self, index: int, make: Callable[[bool], Any], timeout: float | None, several: bool):
        self.index, self.make, self.timeout, self.several = index, make, timeout, several
        self._open()

    @property
    def room(self) -> int:
        """Runs it takes now."""
        return max(0, self.lanes - len(self.runs)) if not self.closing else 0

    def start(self, run: Run) -> None:
        self.runs[run.id], self.began[run.id] = run, time.monotonic()
        self.actor.give.remote(run)

    def look(self, ray: Any) -> list[tuple[Run, Outcome]]:
        """What became of runs, now that `ref` has an answer."""
        try:
            lanes, ended = ray.get(self.ref)
        except ray.exceptions.RayError as error:
            return self._lost(ray, error)
        self.lanes, self.up = lanes, True
        outcomes = [(self.runs.pop(run_id), outcome) for run_id, outcome in ended if run_id in self.runs]
        # what filled the memory may still be there
        self.closing |= any(outcome.record.failure == "memory" for _, outcome in outcomes)
        if self.closing and not self.runs:
            self._reopen(ray)
        else:
            self.ref = self.actor.look.remote(POLL)
        return outcomes

    def give_up(self, ray: Any) -> list[tuple[Run, Outcome]]:
        """Stop an actor one of whose runs is late, by a clock that does not jump."""
        if self.timeout is None:
            return []
        limit, now = self.timeout + (GRACE if self.several else 0.0), time.monotonic()
        late = {run_id for run_id in self.runs if now - self.began[run_id] > limit}
        runs = list(self.runs.values()) if late else []
        if late:
            self._reopen(ray)
        text = "WorkerKilled: another run in the same process took too long and did not yield"
        return [
            (run, Outcome(failed(run, too_late(self.timeout), "timeout"), True))
            if run.id in late
            else (run, Outcome(failed(run, text, "killed"), True, blameless=True))
            for run in runs
        ]

    def _lost(self, ray: Any, error: Exception) -> list[tuple[Run, Outcome]]:
        runs = list(self.runs.values())
        if not runs and not self.up:
            raise error  # an actor that cannot even start: its reason is the sweep's
        self.several &= len(runs) < 2
        self._reopen(ray)
        memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        reason = " ".join(str(error).partition("Some common causes")[0].split())
        text = f"WorkerKilled: {type(error).__name__}: {reason}"
        failure = "memory" if memory else "killed"
        return [(run, Outcome(failed(run, text, failure), True, blameless=len(runs) > 1)) for run in runs]

    def _reopen(self, ray: Any) -> None:
        with contextlib.suppress(Exception):  # it is dead already
            ray.kill(self.actor)
        self._open()

    def _open(self) -> None:
        self.runs: dict[str, Run] = {}
        self.began: dict[str, float] = {}
        self.lanes, self.up, self.closing = 0, False, False  # until it is up it takes no run
        self.actor = self.make(self.several)
        self.ref = self.actor.look.remote(0.0)
