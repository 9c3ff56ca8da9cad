"""What an engine is: runs in, records out as they finish.

An engine knows nothing of stores, and a run that fails is a record like any other, so a sweep outlives its runs.
"""

import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mad.config import Run
from mad.records import Record
from mad.registry import Registry

registry = Registry("engine")
names = registry.names

Work = Callable[..., Record]  # work(run, on_progress=...), as training.train


@dataclass(frozen=True)
class Event:
    """A run has started on a worker (progress None), or tells how far it is."""

    worker: int  # 0, 1, ...
    run: Run
    progress: dict[str, Any] | None = None  # step, steps, accuracy


class Engine:
    """A place where runs execute.

    Args:
        work: what is done with a run, None: `training.train`. It must be importable by name where other processes
            do the work.
    """

    def __init__(self, work: Work | None = None):
        self.work = work

    def run(self, runs: list[Run], *, on_event: Callable[[Event], None] | None = None) -> Generator[Record, None, None]:
        """Yield each run's record when it finishes, in whatever order.

        An exception in a run gives a record with status "failed" and the traceback. Leaving the iteration early, by
        Ctrl-C too, stops what is under way.
        """
        raise NotImplementedError


def build(name: str, work: Work | None = None, **options: Any) -> Engine:
    """The engine `name` with its options.

    Raises:
        ValueError: the name, an option or its value is unknown.
    """
    return registry.build(name, work, **options)


def attempt(work: Work | None, run: Run, on_progress: Callable[[dict[str, Any]], None]) -> Record:
    """Do the work; an exception becomes the record of a failed run."""
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        if work is None:
            from mad import training  # imports torch, which the front door's `--help` need not wait for

            work = training.train
        return work(run, on_progress=on_progress)
    except Exception:
        return failed(run, traceback.format_exc(), started=started, seconds=time.perf_counter() - began)


def failed(run: Run, error: str, **fields: Any) -> Record:
    """The record of a run that ended with `error`."""
    return Record(run_id=run.id, status="failed", config=run.to_dict(), error=error, **fields)
