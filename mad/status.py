"""`python -m mad.status results/NAME`: what of a sweep is done, what runs where, what failed and why, what is left.

Reads the folder alone, so it may be asked from any machine that sees it, also while the sweep is under way. With
`--pack` it also writes all records into one file, `records.jsonl.gz`: in an otherwise empty results folder, on another
machine, the sweep's command goes on from it.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mad.engine.progress import Labels, duration
from mad.records import DONE, Claim, Claims, Record, Store

SILENT = 60.0  # seconds without a sign of life after which one is mentioned


@dataclass
class Status:
    """The state of a sweep's folder: records, the claims of processes that live, those of processes that do not."""

    name: str
    planned: dict[str, str]  # run id -> what one calls it
    records: list[Record]
    running: list[Claim]
    lost: list[Claim]  # their owner is gone: the next process takes them over

    @property
    def left(self) -> int:
        """Runs without a result, those under way included."""
        return len(self.planned.keys() - {record.run_id for record in self.records if record.status in DONE})

    @property
    def untouched(self) -> int:
        """Runs that are neither over, failed ones included, nor under way."""
        return len(self.planned.keys() - {it.run_id for it in (*self.records, *self.running)})

    @property
    def seconds_left(self) -> float | None:
        """If runs to come take as long as those before, with as many at once as now; None: nothing tells."""
        taken = [record.seconds for record in self.records if record.status in DONE]
        return self.left * statistics.mean(taken) / len(self.running) if taken and self.running else None


def read(folder: str) -> Status:
    """The state of a results folder.

    Raises:
        ValueError: it is no results folder.
    """
    store = Store(folder)
    if not store.exists():
        raise ValueError(
            f"{folder} is no results folder: it has neither store.json nor records (runs/*.json, records.jsonl.gz); "
            "expected results/NAME of a sweep"
        )
    records, claims = store.records(), Claims(store.folder)
    recorded = {record.run_id for record in records if record.status in DONE}
    label = Labels(record.config for record in records)
    planned = {record.run_id: label(record.config) for record in records} | store.planned()
    found = [claim for claim in claims.all() if claim.run_id not in recorded]
    lost = [claim for claim in found if claims.dead(claim)]
    return Status(store.sweep, planned, records, [claim for claim in found if claim not in lost], lost)


def show(status: Status, console: Console) -> None:
    counts = Counter(record.status for record in status.records)
    parts = [f"{counts[name]} {name}" for name in ("ok", "diverged", "failed") if counts[name]]
    parts += [f"{len(status.running)} running"] if status.running else []
    parts += [f"{status.untouched} left"] if status.untouched else []
    time_left = f"; about {duration(status.seconds_left)} to go" if status.left and status.seconds_left else ""
    name = escape(status.name)
    console.print(f"{name}: {len(status.planned)} runs: {', '.join(parts) or 'none begun'}{time_left}")
    if status.running or status.lost:
        table = Table("run", "on", "process", "for", "")
        for claim in sorted([*status.running, *status.lost], key=lambda c: (c in status.lost, c.since or 0)):
            table.add_row(*map(escape, _row(claim, status)))
        console.print(table)
    failed = [record for record in status.records if record.status == "failed"]
    if failed:
        table = Table("failed", "run id", "how", "attempts", "why")
        for record in failed:
            what = status.planned.get(record.run_id, record.run_id)
            cells = (what, record.run_id, record.failure or "", str(record.attempts), record.last_error or "")
            table.add_row(*map(escape, cells))
        console.print(table)
        console.print("the sweep's command tries failed runs again; tracebacks are in runs/<run id>.json")


def _row(claim: Claim, status: Status) -> list[str]:
    now = time.time()
    silent = now - claim.touched if claim.touched is not None else 0.0
    remark = "gone: taken over by the next process" if claim in status.lost else ""
    if not remark and silent > SILENT:
        remark = f"no sign of life for {duration(silent)}"
    since = duration(max(0.0, now - claim.since)) if claim.since is not None else ""
    return [status.planned.get(claim.run_id, claim.run_id), claim.host or "", str(claim.pid or ""), since, remark]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mad.status", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="results/NAME")
    parser.add_argument("--pack", action="store_true", help="write all records into FOLDER/records.jsonl.gz")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        for status in [read(folder) for folder in options.folders]:
            show(status, console)
        for folder in options.folders if options.pack else ():
            file = Store(folder).pack()
            packed = f"{file}: {file.stat().st_size / 1000:.0f} kB; git add -f {file}"
            console.print(packed, soft_wrap=True, markup=False)
    except (ValueError, OSError) as error:
        print(f"mad.status: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
