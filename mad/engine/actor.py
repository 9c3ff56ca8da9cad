"""A worker of the engine `ray`: an actor, or the next one in its place, and the runs it has.

Inside the actor a thread does the runs that come, one after the other or, in training, several at once
(`training.interleave`); another answers when it is asked what has ended.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mad.config import Run
from mad.engine.base import POLL, Outcome, Work, attempt, attempts, failed
from mad.engine.worker import GRACE, HELD_UP, too_late


class Given(NamedTuple):
    """What an actor works with. lanes: training runs at once, None: as many as pay; 0: one run of any work."""

    work: Work | None
    checkpoints: Path | None
    retry_on: tuple[str, ...]
    lanes: int | None
    timeout: float | None


class Answer(NamedTuple):
    """Runs that an actor takes at once, seconds since each began, the one whose turn it is, and those that ended."""

    lanes: int
    ages: dict[str, float]
    turn: str | None
    ended: list[tuple[str, Outcome]]


class Actor:
    """In a process of Ray's."""

    def __init__(self, given: Given):
        if given.work is None:
            import torch._dynamo  # noqa: F401 - what an optimiser imports in its first step

            import mad.training  # noqa: F401 - now, not in the time of the first run
        self.given, self.lanes = given, given.lanes or 1
        self.inbox: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[tuple[str, Outcome] | BaseException] = queue.SimpleQueue()
        self.began: dict[str, float] = {}
        self.turn: str | None = None
        self.error: BaseException | None = None
        threading.Thread(target=self._serve, name="runs", daemon=True).start()

    def give(self, run: Run) -> None:
        self.inbox.put(run)

    def look(self, patience: float) -> Answer:
        """How things are; it waits so long for a run to end."""
        ended: list[tuple[str, Outcome]] = []
        with contextlib.suppress(queue.Empty):
            while self.error is None:
                item = self.ended.get(timeout=patience) if patience and not ended else self.ended.get_nowait()
                if isinstance(item, BaseException):
                    self.error = item
                else:
                    ended.append(item)
        if self.error is not None and not ended:
            raise self.error
        now = time.monotonic()
        return Answer(self.lanes, {run_id: now - began for run_id, began in dict(self.began).items()}, self.turn, ended)

    def _serve(self) -> None:
        import torch

        torch.set_num_threads(1)  # the other cores belong to the other actors
        work, checkpoints, retry_on, lanes, _ = self.given
        try:
            if lanes != 0:
                self._interleave()
            while True:
                run = self.inbox.get()
                self._begin(run, True)
                self._end(run, attempt(work, run, lambda progress: None, checkpoints, retry_on))
        except BaseException as error:
            self.ended.put(error)

    def _interleave(self) -> None:
        _, checkpoints, retry_on, lanes, timeout = self.given
        runs = attempts(
            self._handed_out(), lanes, lambda lanes: setattr(self, "lanes", lanes), checkpoints, timeout, retry_on,
            on_turn=lambda run: setattr(self, "turn", run.id), on_begin=self._begin,
        )  # fmt: skip
        for run, outcome in runs:
            self._end(run, outcome)

    def _begin(self, run: Run, begun: bool) -> None:
        if begun:
            self.began[run.id], self.turn = time.monotonic(), run.id
        else:  # it must wait after all
            self.began.pop(run.id, None)

    def _end(self, run: Run, outcome: Outcome) -> None:
        self.began.pop(run.id, None)
        self.ended.put((run.id, outcome))

    def _handed_out(self) -> Iterator[Run | None]:
        while True:
            try:
                yield self.inbox.get_nowait()
            except queue.Empty:
                yield None


class Worker:
    """One actor, or the next one in its place, and the runs it has.

    An actor that dies with several runs does not say whose fault it was. The next one begins them again by themselves,
    one at a time, before it takes others; so whoever kills that one is known, and only his attempts count.
    """

    def __init__(self, index: int, make: Callable[[], Any], timeout: float | None, several: bool, on_gpu: bool):
        self.index, self.make, self.timeout, self.several, self.on_gpu = index, make, timeout, several, on_gpu
        self.suspects: deque[Run] = deque()
        self._open()

    @property
    def room(self) -> int:
        """Runs it takes now."""
        return 0 if self.closing or self.alone or self.suspects else max(0, self.lanes - len(self.runs))

    @property
    def busy(self) -> bool:
        return bool(self.runs or self.suspects)

    def start(self, run: Run) -> None:
        self.runs[run.id] = run
        self.actor.give.remote(run)

    def look(self, ray: Any) -> list[tuple[Run, Outcome]]:
        """What became of runs, now that `ref` has an answer."""
        try:
            answer: Answer = ray.get(self.ref)
        except ray.exceptions.RayError as error:
            return self._lost(ray, error)
        now = time.monotonic()
        self.lanes, self.turn, self.up = answer.lanes, answer.turn, True
        self.began = {run_id: now - age for run_id, age in answer.ages.items()}
        outcomes = [(self.runs.pop(run_id), outcome) for run_id, outcome in answer.ended if run_id in self.runs]
        # what filled the memory may still be there, and after an error on a device every later run may fail too
        self.closing |= any(
            outcome.record.failure == "memory" or (outcome.record.failure and self.on_gpu and not self.several)
            for _, outcome in outcomes
        )
        if not self.runs:
            if self.closing:
                self._reopen(ray)
                return outcomes
            self.alone = bool(self.suspects)
            if self.suspects:
                self.start(self.suspects.popleft())
        self.ref = self.actor.look.remote(POLL)
        return outcomes

    def give_up(self, ray: Any) -> list[tuple[Run, Outcome]]:
        """Stop an actor one of whose runs is late, by a clock that does not jump."""
        if self.timeout is None:
            return []
        limit, now = self.timeout + (GRACE if self.several else 0.0), time.monotonic()
        late = {run_id for run_id, began in self.began.items() if run_id in self.runs and now - began > limit}
        if not late:
            return []
        guilty, runs = {self.turn} & set(self.runs) or late, list(self.runs.values())  # who does not let it end
        self._reopen(ray)
        return [
            (run, Outcome(failed(run, too_late(self.timeout), "timeout"), True))
            if run.id in guilty
            else (run, Outcome(failed(run, HELD_UP, "killed"), True, blameless=True))
            for run in runs
        ]

    def _lost(self, ray: Any, error: Exception) -> list[tuple[Run, Outcome]]:
        runs = list(self.runs.values())
        if not runs and not self.up:
            raise error  # an actor that cannot even start: its reason is the sweep's
        self._reopen(ray)
        if len(runs) > 1:
            self.suspects.extend(runs)
            return []
        memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        reason = " ".join(str(error).partition("Some common causes")[0].split())
        text = f"WorkerKilled: {type(error).__name__}: {reason}"
        return [(run, Outcome(failed(run, text, "memory" if memory else "killed"), True)) for run in runs]

    def _reopen(self, ray: Any) -> None:
        with contextlib.suppress(Exception):  # it is dead already
            ray.kill(self.actor)
        self._open()

    def _open(self) -> None:
        self.runs: dict[str, Run] = {}
        self.began: dict[str, float] = {}
        self.turn: str | None = None
        self.lanes, self.up, self.closing, self.alone = 0, False, False, False  # until it is up it takes no run
        self.actor = self.make()
        self.ref = self.actor.look.remote(0.0)
