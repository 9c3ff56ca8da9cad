"""What an engine costs a run, and whether two processes that share a folder do each run once.

Runs that do nothing, so all that is timed is the engine's and the store's: claim, hand over, record, give back. First
one process alone: milliseconds a run once its workers are up, then two processes with the same folder, and a count of
what was executed and what was recorded.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from mad import engine
from mad.config import Run
from mad.records import Record, Store

STARTED = 20  # runs after which all workers are taken to be up


def work(run: Run, on_progress: Any = None) -> Record:
    """Note that the run was executed, by a line in a file of this process's own."""
    with open(Path(run.task["notes"]) / str(os.getpid()), "a", encoding="utf-8") as notes:
        notes.write(f"{run.id}\n")
    return Record(run.id, "ok", run.to_dict())


def runs(number: int, notes: Path) -> list[Run]:
    given = {"name": "nothing", "notes": str(notes)}
    return [Run.of({"task": given, "arch": {"name": "none"}, "seed": s, "device": "cpu"}) for s in range(number)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench engine", description=__doc__)
    parser.add_argument("--engine", default="local", choices=("local", "ray"), help="(local)")
    parser.add_argument("--runs", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--workers", type=int, default=2, help="of a process (2)")
    parser.add_argument("--share", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.runs <= STARTED or args.workers < 1:
        parser.error(f"--runs must be above {STARTED} and --workers at least 1, got {args.runs} and {args.workers}")
    if args.share:
        share(Path(args.share), args.engine, args.runs, args.workers)
        return
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="mad-bench-") as place:
        start, each = alone(Path(place, "alone"), args.engine, args.runs, args.workers)
        console.print(f"{args.engine}, {args.workers} workers: up after {start:.1f} s, then {each:.2f} ms a run")
        executed, distinct, recorded = shared(Path(place, "shared"), args.engine, args.runs, args.workers)
        counts = f"{executed} executed ({distinct} different), {recorded} recorded"
        console.print(f"two processes, one folder: {args.runs} runs, {counts}", soft_wrap=True)


def alone(folder: Path, name: str, number: int, workers: int) -> tuple[float, float]:
    """Seconds until the workers are up, milliseconds a run from then on, records written."""
    marks = []

    class Clock(engine.Display):
        def on_record(self, record: Record) -> None:
            marks.append(time.perf_counter())

    made, began = runs(number, _notes(folder)), time.perf_counter()
    engine.execute(made, Store(folder / "results"), engine.build(name, work, workers=workers), Clock())
    return marks[STARTED] - began, 1000 * (marks[-1] - marks[STARTED]) / (number - STARTED - 1)


def shared(folder: Path, name: str, number: int, workers: int) -> tuple[int, int, int]:
    """Two processes at once: executions, different runs among them, records."""
    notes = _notes(folder)
    command = [sys.executable, "-m", "mad.bench", "engine", "--share", str(folder), "--engine", name]
    command += ["--runs", str(number), "--workers", str(workers)]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    if any([process.wait() for process in both]):
        raise RuntimeError("a process ended with an error")
    executed = [line for file in notes.iterdir() for line in file.read_text().splitlines()]
    return len(executed), len(set(executed)), len(Store(folder / "results").records())


def share(folder: Path, name: str, number: int, workers: int) -> None:
    """What each of the two does."""
    engine.execute(runs(number, folder / "notes"), Store(folder / "results"), engine.build(name, work, workers=workers))


def _notes(folder: Path) -> Path:
    notes = folder / "notes"
    notes.mkdir(parents=True)
    return notes
