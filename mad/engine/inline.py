"""One run after the other, in this process: for a debugger, a notebook, or a single run."""

import time
from collections.abc import Callable, Generator

from mad.config import Run
from mad.engine.base import POLL, Claim, Engine, Event, Pending, attempt, registry
from mad.records import Record


@registry.register("inline")
class Inline(Engine):
    """One run after the other, in this process."""

    def run(
        self, runs: list[Run], *, claim: Claim | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Generator[Record, None, None]:
        tell = on_event or (lambda event: None)
        pending = Pending(runs, claim, self.retries)
        while pending:
            run = pending.next()
            if run is None:
                time.sleep(POLL)
                continue
            tell(Event(0, run))
            outcome = attempt(
                self.work,
                run,
                lambda progress, run=run: tell(Event(0, run, progress)),
                self.checkpoints,
                self.retry_on,
            )
            record = pending.settle(run, outcome)
            if record is not None:
                yield record
            else:
                tell(Event(0, run, again=True))
