"""From runs to records in a store: what is there already is left alone, what arrives is written at once.

Several processes, on several machines, may do this at once with one folder: each run is claimed before it begins, and
a claim whose owner is gone is taken over. A record that cannot be written (a full disk) is kept and tried again.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mad.config import Run
from mad.engine.base import Engine
from mad.engine.progress import Display, Labels
from mad.records import DONE, STATUSES, Claims, Record, Store

AGAIN = 2.0  # seconds between two attempts to write what could not be written
WAITING = 10.0  # seconds of nothing but waiting for others after which it is said


@dataclass
class Summary:
    """What `execute` did. `counts` and `seconds` are of this call alone."""

    there: int = 0  # runs that had a result before
    elsewhere: int = 0  # runs that another process did meanwhile
    left: int = 0  # runs that the engine could not get done
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
    before: Mapping[str, Any] | None = None,
) -> Summary:
    """Run what has no result yet, and return when all have one.

    Args:
        runs: prepared runs (`training.prepare`), or their ids would not be those of their records.
        store: where the records go.
        engine: where the runs execute.
        progress: shows what goes on, None: nothing is shown.
        sweep: the name in the records, None: the store's.
        claims: the store's claims, None: with the usual heartbeat.
        before: the records' stamps (`Store.stamp`) at an earlier time, since which a failure counts as settled; None:
            now, older failures are tried again.

    Raises:
        ValueError: the folder cannot be written to.
        KeyboardInterrupt: on Ctrl-C; what had finished is in the store and in `results.csv`.
    """
    progress = progress or Display()
    distinct = {run.id: run for run in runs}
    progress.label = label = Labels(distinct.values())
    store.plan({run_id: label(run) for run_id, run in distinct.items()})
    stamps = dict(before or {}) or {run_id: store.stamp(run_id) for run_id in distinct}  # before anything is read
    todo = [run for run_id, run in distinct.items() if not store.done(run_id)]
    summary, began = Summary(there=len(distinct) - len(todo)), time.perf_counter()
    engine.folder, engine.stamps = store.folder.absolute(), stamps
    claims = claims or Claims(store.folder)
    desk = _Desk(store, claims, sweep or store.sweep, progress.on_trouble)
    patience = _Patience(store, progress.on_trouble)
    claims.clear(store.done)

    def done_elsewhere(run_id: str) -> bool:
        stamp = store.stamp(run_id)
        if stamp == stamps[run_id]:
            return False
        if store.read(run_id) is None:  # gone again, or not readable
            stamps[run_id] = store.stamp(run_id)
            return False
        return True

    def claim(run: Run) -> bool | None:
        desk.write_again()
        try:
            if not done_elsewhere(run.id):
                if not claims.take(run.id):
                    patience.lost()
                    return None
                if not done_elsewhere(run.id):  # looked at again, now that it is ours
                    patience.won()
                    return True
                claims.release(run.id)
        except OSError as error:
            progress.on_trouble(f"no run can be claimed: {error}; tried again")
            return None
        patience.won()
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
        if summary.executed or summary.elsewhere or store.csv_is_older():
            try:
                store.write_csv()
            except OSError as error:
                progress.on_trouble(f"results.csv cannot be written: {error}; the records are complete")
    summary.left = len(todo) - summary.executed - summary.elsewhere
    return summary


class _Patience:
    """Says so once, where for a while nothing is left but what other processes have."""

    def __init__(self, store: Store, trouble: Callable[[str], None]):
        self.store, self.trouble = store, trouble
        self.since: float | None = None

    def won(self) -> None:
        self.since = None

    def lost(self) -> None:
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since > WAITING:
            self.trouble(f"waiting for runs that other processes have; see python -m mad.status {self.store.folder}")


class _Desk:
    """Writes records and gives their claims back; keeps what could not be written."""

    def __init__(self, store: Store, claims: Claims, sweep: str, trouble: Callable[[str], None]):
        self.store, self.claims, self.sweep, self.trouble = store, claims, sweep, trouble
        self.unwritten: list[Record] = []
        self._next = 0.0

    def take(self, record: Record) -> None:
        record.sweep = self.sweep
        self.unwritten.append(record)  # at once: Ctrl-C may come at any time
        try:
            self._write()
        except OSError as error:
            self.trouble(f"a record cannot be written: {error}; it is kept and tried again")

    def write_again(self, patient: bool = True) -> None:
        if not self.unwritten or (patient and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + AGAIN
        with contextlib.suppress(OSError):
            self._write()

    def clear(self) -> None:
        """Wait until all is written."""
        while self.unwritten:
            self.write_again()
            time.sleep(0.1)

    def rescue(self) -> None:
        """After an interruption: what cannot be written where it belongs goes where temporary files go."""
        self.write_again(patient=False)
        if not self.unwritten:
            return
        lost = f"{len(self.unwritten)} records could not be written to {self.store.folder}"
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"mad-{self.store.folder.name[:50]}-"))
            for record in self.unwritten:
                Store(folder, self.store.sweep).write(record)
        except OSError as error:
            self.trouble(f"{lost}, nor elsewhere: {error}")
        else:
            self.trouble(f"{lost}; they are in {folder}/runs")

    def _write(self) -> None:
        while self.unwritten:
            record = self.unwritten[-1]
            # an owner that was taken for dead may fail late, when another has done its run: that result stays
            if record.status in DONE or not self.store.done(record.run_id):
                self.store.write(record)
            if record.status in DONE:
                (self.store.folder / "checkpoints" / f"{record.run_id}.pt").unlink(missing_ok=True)
            self.claims.release(record.run_id)
            self.unwritten.pop()
