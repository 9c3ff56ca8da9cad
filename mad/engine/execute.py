"""From runs to records in a store: what is there already is left alone, what arrives is written at once."""

import contextlib
import time
from dataclasses import dataclass, field

from mad.config import Run
from mad.engine.base import Engine
from mad.engine.progress import Display
from mad.records import STATUSES, Store


@dataclass
class Summary:
    """What `execute` did. `counts` and `seconds` are of this call alone."""

    there: int = 0  # runs that had a result before
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    seconds: float = 0.0

    @property
    def executed(self) -> int:
        return sum(self.counts.values())


def execute(
    runs: list[Run], store: Store, engine: Engine, progress: Display | None = None, sweep: str | None = None
) -> Summary:
    """Run what has no result yet.

    Args:
        runs: prepared runs (`training.prepare`), or their ids would not be those of their records.
        store: where the records go.
        engine: where the runs execute.
        progress: shows what goes on, None: nothing is shown.
        sweep: the name in the records, None: the store's.

    Raises:
        KeyboardInterrupt: on Ctrl-C; what had finished is in the store and in `results.csv`.
    """
    progress = progress or Display()
    distinct = {run.id: run for run in runs}
    todo = [run for run_id, run in distinct.items() if not store.done(run_id)]
    summary, began = Summary(there=len(distinct) - len(todo)), time.perf_counter()
    try:
        with progress, contextlib.closing(engine.run(todo, on_event=progress.on_event)) as records:
            progress.begin(len(todo), summary.there)
            for record in records:
                record.sweep = sweep or store.sweep
                store.write(record)
                summary.counts[record.status] += 1
                progress.on_record(record)
    finally:
        summary.seconds = time.perf_counter() - began
        if summary.executed or not (store.folder / "results.csv").exists():
            store.write_csv()
    return summary
