"""From runs to records in a store: what is there already is left alone, what arrives is written at once.

Several processes, on several machines, may do this at once with one folder: each run is claimed before it begins, and
a claim whose owner is gone is taken over. A record that cannot be written (a full disk) is kept and tried again.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mad.config import Run
from mad.engine.base import Engine
from mad.engine.progress import Display, label
from mad.records import STATUSES, Claims, Record, Store

AGAIN = 2.0  # seconds between two attempts to write what could not be written


@dataclass
class Summary:
    """What `execute` did. `counts` and `seconds` are of this call alone."""

    there: int = 0  # runs that had a result before
    elsewhere: int = 0  # runs that another process did meanwhile
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    seconds: float = 0.0

    @property
    def executed(self) -> int:
        return sum(self.counts.values())


def execute(
    runs: list[Run],
    store: Store,
    engine: Engine,
    progress: Display | None = None,
    sweep: str | None = None,
    claims: Claims | None = None,
) -> Summary:
    """Run what has no result yet, and return when all have one.

    Args:
        runs: prepared runs (`training.prepare`), or their ids would not be those of their records.
        store: where the records go.
        engine: where the runs execute.
        progress: shows what goes on, None: nothing is shown.
        sweep: the name in the records, None: the store's.
        claims: the store's claims, None: with the usual heartbeat.

    Raises:
        ValueError: the folder cannot be written to.
        KeyboardInterrupt: on Ctrl-C; what had finished is in the store and in `results.csv`.
    """
    progress = progress or Display()
    distinct = {run.id: run for run in runs}
    store.plan({run_id: label(run) for run_id, run in distinct.items()})
    todo = [run for run_id, run in distinct.items() if not store.done(run_id)]
    before = {run.id: store.stamp(run.id) for run in todo}  # an older failure is tried again, a new one not
    summary, began = Summary(there=len(distinct) - len(todo)), time.perf_counter()
    engine.folder = store.folder.absolute()
    claims = claims or Claims(store.folder)
    desk = _Desk(store, claims, sweep or store.sweep, progress.on_trouble)

    def done_elsewhere(run_id: str) -> bool:
        stamp = store.stamp(run_id)
        if stamp == before[run_id]:
            return False
        if store.read(run_id) is None:  # gone again, or not readable
            before[run_id] = store.stamp(run_id)
            return False
        return True

    def claim(run: Run) -> bool | None:
        desk.write_again()
        if not done_elsewhere(run.id):
            if not desk.claim(run.id):
                return None
            if not done_elsewhere(run.id):  # looked at again, now that it is ours
                return True
            claims.release(run.id)
        summary.elsewhere += 1
        progress.on_elsewhere(run)
        return False

    try:
        ours = claim if engine.claims else None
        with claims, progress, contextlib.closing(engine.run(todo, claim=ours, on_event=progress.on_event)) as records:
            progress.begin(len(todo), summary.there)
            for record in records:
                if engine.claims:
                    desk.take(record)
                summary.counts[record.status] += 1
                progress.on_record(record)
            desk.clear()
    finally:
        summary.seconds = time.perf_counter() - began
        desk.rescue()
        if summary.executed or summary.elsewhere or not (store.folder / "results.csv").exists():
            try:
                store.write_csv()
            except OSError as error:
                progress.on_trouble(f"results.csv cannot be written: {error}; the records are complete")
    return summary


class _Desk:
    """Claims runs, writes their records and gives the claims back; keeps what could not be written."""

    def __init__(self, store: Store, claims: Claims, sweep: str, trouble: Callable[[str], None]):
        self.store, self.claims, self.sweep, self.trouble = store, claims, sweep, trouble
        self.unwritten: list[Record] = []
        self._next = 0.0

    def claim(self, run_id: str) -> bool:
        try:
            return self.claims.take(run_id)
        except OSError as error:
            self.trouble(f"no run can be claimed: {error}; tried again")
            return False

    def take(self, record: Record) -> None:
        record.sweep = self.sweep
        try:
            self._write(record)
        except OSError as error:
            self.unwritten.append(record)
            self.trouble(f"a record cannot be written: {error}; it is kept and tried again")

    def write_again(self, patient: bool = True) -> None:
        if not self.unwritten or (patient and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + AGAIN
        with contextlib.suppress(OSError):
            while self.unwritten:
                self._write(self.unwritten[0])
                self.unwritten.pop(0)

    def clear(self) -> None:
        """Wait until all is written."""
        while self.unwritten:
            self.write_again()
            time.sleep(0.1)

    def rescue(self) -> None:
        """After an interruption: what cannot be written where it belongs goes where temporary files go."""
        self.write_again(patient=False)
        if self.unwritten:
            folder = Path(tempfile.mkdtemp(prefix=f"mad-{self.store.sweep}-"))
            rescued = Store(folder, self.store.sweep)
            for record in self.unwritten:
                rescued.write(record)
            self.trouble(
                f"{len(self.unwritten)} records could not be written to {self.store.folder}; they are in {folder}/runs"
            )

    def _write(self, record: Record) -> None:
        self.store.write(record)
        self.claims.release(record.run_id)
