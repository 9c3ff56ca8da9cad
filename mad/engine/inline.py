"""One run after the other, in this process: for a debugger, a notebook, or a single run."""

from collections.abc import Callable, Generator

from mad.config import Run
from mad.engine.base import Engine, Event, attempt, registry
from mad.records import Record


@registry.register("inline")
class Inline(Engine):
    """One run after the other, in this process."""

    def run(self, runs: list[Run], *, on_event: Callable[[Event], None] | None = None) -> Generator[Record, None, None]:
        tell = on_event or (lambda event: None)
        for run in runs:
            tell(Event(0, run))
            yield attempt(self.work, run, lambda progress, run=run: tell(Event(0, run, progress)))
