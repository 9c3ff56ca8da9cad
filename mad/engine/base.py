"""What an engine is: runs in, records out as they finish.

An engine knows nothing of stores, and a run that fails is a record like any other, so a sweep outlives its runs.
"""

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import mad
from mad import plugins
from mad.config import Run
from mad.memory import out_of_memory
from mad.records import Record
from mad.registry import Registry

registry = Registry("engine")
names = registry.names

Work = Callable[..., Record]  # work(run, on_progress=...), as training.train
Claim = Callable[[Run], bool | None]  # True: it is ours; False: it is done elsewhere; None: it is under way elsewhere

POLL = 0.5  # seconds between two looks at what is under way elsewhere


class Unusable(ValueError):
    """The engine cannot be had as it was asked for, which shows only as it starts."""


@dataclass(frozen=True)
class Event:
    """A run has started on a worker (progress None), tells how far it is, or has ended to be begun again."""

    worker: int  # 0, 1, ...
    run: Run
    progress: dict[str, Any] | None = None  # step, steps, accuracy, phase
    again: bool = False


class Outcome(NamedTuple):
    """A run's record, and whether it failed in a way after which it is worth beginning again; blameless: it failed
    with its process, which another run had at that moment, so the attempt does not count."""

    record: Record
    again: bool = False
    blameless: bool = False


class Engine:
    """A place where runs execute.

    Args:
        work: what is done with a run, None: `training.train`. It must be importable by name where other processes
            do the work.
        retries: how often a run is begun again whose worker died, ran out of memory or exceeded its time.
        retry_on: names of exceptions after which it is begun again too, for instance [OSError]; those derived from
            them count as well.
    """

    claims = True  # False: its workers claim runs and write records themselves
    folder: Path | None = None  # the sweep's, set by whoever has one
    stamps: Mapping[str, Any] | None = None  # of its records when the sweep began (`Store.stamp`), set likewise

    def __init__(self, work: Work | None = None, *, retries: int = 1, retry_on: Iterable[str] = ()):
        self.work = work
        if isinstance(retry_on, str):
            raise ValueError(f"engine.retry_on must be a list, as [{retry_on}], got {retry_on!r}")
        self.retries, self.retry_on = whole("retries", retries, 0), tuple(retry_on)

    @classmethod
    def elsewhere(cls, options: Mapping[str, Any]) -> bool:
        """Whether an engine with these options runs on other machines, whose devices are not known here."""
        return False

    def run(
        self, runs: list[Run], *, claim: Claim | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Generator[Record, None, None]:
        """Yield each run's record when it finishes, in whatever order.

        An exception in a run gives a record with status "failed" and the traceback. Leaving the iteration early, by
        Ctrl-C too, stops what is under way.

        Args:
            claim: asked before a run begins, where several processes share the work; None: all are ours.

        Raises:
            Unusable: the engine cannot start.
        """
        raise NotImplementedError

    @property
    def checkpoints(self) -> Path | None:
        """Where long runs keep their state."""
        return None if self.folder is None else self.folder / "checkpoints"


class Pending:
    """The runs still to begin, in order; those to be begun again come last."""

    def __init__(
        self,
        runs: Iterable[Run],
        claim: Claim | None = None,
        retries: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.runs, self.claim, self.retries, self.clock = deque(runs), claim or (lambda run: True), retries, clock
        self.attempts: dict[str, int] = {}
        self._again = -1.0  # when those under way elsewhere are looked at again

    def __bool__(self) -> bool:
        return bool(self.runs)

    def next(self) -> Run | None:
        """A run to begin; None: none for now."""
        if self.clock() < self._again:
            return None
        for _ in range(len(self.runs)):
            run = self.runs.popleft()
            answer = self.claim(run)
            if answer:
                self.attempts[run.id] = self.attempts.get(run.id, 0) + 1
                return run
            if answer is None:
                self.runs.append(run)
        if self.runs:
            self._again = self.clock() + POLL
        return None

    def settle(self, run: Run, outcome: Outcome) -> Record | None:
        """The record of a run that has ended; None: it is to be begun again."""
        record = outcome.record
        self.attempts[run.id] -= outcome.blameless
        record.attempts = self.attempts[run.id]
        if outcome.again and record.attempts <= self.retries:
            self.runs.append(run)
            self._again = -1.0
            return None
        return record


def share_out(pending: Pending, workers: Sequence[Any]) -> Iterator[tuple[Run, Any]]:
    """Runs to begin, each with the emptiest worker that has room for it."""
    while pending:
        worker = max(workers, key=lambda worker: worker.room)
        run = pending.next() if worker.room else None
        if run is None:
            return
        yield run, worker


def build(name: str, work: Work | None = None, **options: Any) -> Engine:
    """The engine `name` with its options.

    Raises:
        ValueError: the name, an option or its value is unknown, or something it needs is not there.
    """
    return registry.build(name, work, **options)


def elsewhere(name: str, options: Mapping[str, Any]) -> bool:
    """Whether that engine runs on other machines. Raises ValueError for a name that does not exist."""
    engine: Any = registry.get(name)
    return engine.elsewhere(options)


def whole(name: str, value: Any, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"engine.{name} must be a whole number of at least {low}, got {value!r}")
    return value


def workers_or_none(value: Any) -> int | None:
    """A number of workers, or None for as many as there is room for."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"engine.workers must be a whole number of at least 1, or null for all, got {value!r}")
    return value


def lanes_or_none(value: Any, work: Work | None) -> int | None:
    """Runs at once in a process, or None for as many as pay."""
    if work is not None and value not in (None, 1):
        raise ValueError("engine.lanes is for training; other work is done one run at a time")
    return None if value is None else whole("lanes", value, 1)


def positive_or_none(name: str, value: Any) -> float | None:
    """A positive number, or None for no limit."""
    if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0):
        raise ValueError(f"engine.{name} must be a number above 0, or null for no limit, got {value!r}")
    return value


def attempt(
    work: Work | None,
    run: Run,
    on_progress: Callable[[dict[str, Any]], None],
    checkpoints: Path | None = None,
    retry_on: Iterable[str] = (),
) -> Outcome:
    """Do the work; an exception becomes the record of a failed run."""
    began = time.perf_counter()
    try:
        if work is not None:
            return Outcome(work(run, on_progress=on_progress))
        from mad import training  # imports torch, which the front door's `--help` need not wait for

        where = None if checkpoints is None else training.Checkpoints(checkpoints)
        return Outcome(training.train(run, on_progress=on_progress, checkpoints=where))
    except Exception as error:
        return of_error(run, error, time.perf_counter() - began, retry_on)


def attempts(
    source: Iterator[Run | None],
    lanes: int | None,
    tell: Callable[[int], None],
    checkpoints: Path | None,
    timeout: float | None,
    retry_on: Iterable[str],
    **heard: Callable[..., None],
) -> Iterator[tuple[Run, Outcome]]:
    """`attempt` of the runs that come, `lanes` or as many as pay at once, as they end; `tell` hears how many these are.

    heard: on_progress, on_turn and on_begin of `training.interleave`.
    """
    from mad import training

    pace = training.Pace(lanes or training.how_many(), lanes or 1, tell=tell)
    tell(pace.lanes)
    where = None if checkpoints is None else training.Checkpoints(checkpoints)
    for ended in training.interleave(source, pace, checkpoints=where, timeout=timeout, **heard):
        if ended.record is not None:
            yield ended.run, Outcome(ended.record)
        else:
            assert ended.error is not None
            yield ended.run, of_error(ended.run, ended.error, ended.seconds, retry_on, ended.late)


def of_error(run: Run, error: Exception, seconds: float, retry_on: Iterable[str] = (), late: bool = False) -> Outcome:
    """What becomes of a run that has raised `error` after so many seconds; `late`: because its time was up."""
    text, kinds = "".join(traceback.format_exception(error)), {kind.__name__ for kind in type(error).__mro__}
    if out_of_memory(error):
        failure = "memory"
    else:
        failure = "timeout" if late else "exception"
    started = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
    record = failed(run, text, failure, started=started, seconds=seconds)
    return Outcome(record, failure != "exception" or not kinds.isdisjoint(retry_on))


def failed(run: Run, error: str, failure: str, **fields: Any) -> Record:
    """The record of a run that ended with `error`, in one of the ways `records.FAILURES`."""
    versions = {"mad": mad.__version__} | plugins.versions(run.plugin_texts)  # torch's is for the worker to know
    return Record(
        run_id=run.id, status="failed", config=run.to_dict(), error=error, failure=failure, versions=versions, **fields
    )
