"""`python -m mad.drill`: a fault drill. Does a sweep survive what happens to sweeps?

Sixty tiny trainings, of which one always crashes, one exceeds its memory, one hangs and one diverges. While they run,
workers are killed at random, the sweep itself is killed and started again twice, the disk fills up for a while (a small
tmpfs, where one may mount it), and a record is cut off by hand. Afterwards every run must have its record, once: those
that can be trained equal those of an undisturbed sweep, the others say what happened to them; and no process is left.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from mad import engine, training
from mad.config import Run
from mad.engine import Display
from mad.engine.progress import Plain
from mad.records import Claims, Record, Store, dumps

CRASHES, EATS, HANGS, DIVERGES = 7, 19, 31, 43  # seeds
EXPECTED = {CRASHES: "killed", EATS: "memory", HANGS: "timeout"}
RETRIES = 5  # kills come at random, and a run may be hit more than once
TIMEOUT, MEMORY = 6.0, 3.0  # seconds; GB
DISK = 24  # MB


def work(run: Run, on_progress: Any = None) -> Record:
    """Train, unless the run is one of those that break."""
    if run.seed == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    if run.seed == EATS:
        hoard = bytearray(10_000_000_000)
        raise AssertionError(f"{len(hoard)} bytes were to be had within a limit of {MEMORY} GB")
    if run.seed == HANGS:
        time.sleep(3600)
    return training.train(run, on_progress=on_progress)


def runs(number: int) -> list[Run]:
    """Tiny trainings; seed 43 with a learning rate at which nothing trains."""
    given = {
        "task": {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2},
        "arch": {"stack": "base_conv-attention", "dim": 16},
        "train": {"steps": 150, "batch_size": 32, "num_train": 256, "num_test": 64, "stop_at": None},
        "device": "cpu",
    }
    optim = {True: {"lr": 1e30, "clip": None}, False: {"lr": 3e-3}}
    return [training.prepare(given | {"seed": s, "optim": optim[s == DIVERGES]}) for s in range(number)]


def sweep(folder: Path, number: int) -> None:
    """The sweep that is disturbed, in a process of its own."""
    machine = engine.build("local", work, workers=2, timeout=TIMEOUT, memory=MEMORY, retries=RETRIES)
    claims = Claims(folder, heartbeat=0.5, stale=5.0)
    engine.execute(runs(number), Store(folder, "drill"), machine, Plain(_say), claims=claims)


def _say(line: str) -> None:
    print(line, flush=True)


class Drill:
    """Disturbs a sweep. `log` has what was done to it."""

    def __init__(self, folder: Path, number: int, seed: int):
        self.folder, self.number, self.random = folder, number, random.Random(seed)
        self.log: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self.sessions: list[int] = []  # process groups, to look for orphans

    def start(self) -> None:
        command = [sys.executable, "-m", "mad.drill", "--sweep", str(self.folder), "--runs", str(self.number)]
        self.process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, text=True)
        self.sessions.append(self.process.pid)

    def kill_sweep(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log.append(f"sweep killed with {self.recorded()} records")
        _wait(lambda: not alive(self.process.pid), 20, "workers that outlive their sweep")  # type: ignore[union-attr]

    def kill_worker(self) -> None:
        assert self.process is not None
        workers = [pid for pid in alive(self.process.pid) if is_worker(pid)]
        if workers:
            chosen = self.random.choice(workers)
            os.kill(chosen, signal.SIGKILL)
            self.log.append(f"worker {chosen} killed")

    def fill_disk(self, seconds: float) -> None:
        ballast = self.folder / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError as error:
                self.log.append(f"disk filled: {error.strerror}")
            while True:  # the rest, byte by byte
                try:
                    file.write(b"0")
                except OSError:
                    break
        before = self.recorded()
        time.sleep(seconds)
        self.log.append(f"disk full for {seconds:g} s, records before and after: {before}, {self.recorded()}")
        ballast.unlink()

    def cut_a_record(self) -> None:
        path = min((self.folder / "runs").glob("*.json"))
        text = path.read_text()
        path.write_text(text[: len(text) // 2])
        self.log.append(f"record {path.name} cut off")

    def recorded(self) -> int:
        return len(list((self.folder / "runs").glob("*.json")))

    def until(self, records: int) -> None:
        _wait(lambda: self.recorded() >= records or self._over(), 300, f"{records} records")

    def _over(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def run(self, full_disk: bool) -> int:
        """All of it; the exit status of the last sweep."""
        share = self.number // 6
        killing = threading.Event()
        self.start()
        killer = threading.Thread(target=self._kill_workers, args=(killing,), daemon=True)
        killer.start()
        self.until(share)
        self.kill_sweep()
        self.cut_a_record()
        self.start()
        self.until(2 * share)
        if full_disk:
            self.fill_disk(3.0)
        self.until(3 * share)
        self.kill_sweep()
        self.start()
        self.until(4 * share)
        killing.set()
        killer.join()
        assert self.process is not None
        return self.process.wait(timeout=300)

    def _kill_workers(self, stop: threading.Event) -> None:
        while not stop.wait(self.random.uniform(2.0, 5.0)):
            self.kill_worker()


def alive(group: int) -> list[int]:
    """Processes of a process group that are not zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(of_group) == group and state not in "ZX":
            found.append(int(folder.name))
    return found


def is_worker(pid: int) -> bool:
    """Whether a process was forked from the fork server: those have it for a parent."""
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return "forkserver" in Path(f"/proc/{parent}/cmdline").read_text()
    except OSError:
        return False


def check(folder: Path, undisturbed: dict[str, Record], number: int, sessions: list[int]) -> list[tuple[str, bool]]:
    """(what must hold, whether it does)."""
    made = {run.id: run for run in runs(number)}
    records = {record.run_id: record for record in Store(folder).records()}
    by_seed = {record.config["seed"]: record for record in records.values()}
    trained = {key: record for key, record in records.items() if record.status == "ok"}
    equal = [key for key, record in trained.items() if outcome(record) == outcome(undisturbed[key])]
    poison = [seed for seed in (*EXPECTED, DIVERGES) if seed < number]
    right = [s for s in poison if s in by_seed and (by_seed[s].failure == EXPECTED.get(s) if s in EXPECTED else True)]
    right = [s for s in right if by_seed[s].status == ("diverged" if s == DIVERGES else "failed")]
    good = number - len(poison)
    return [
        (f"{number} records, one for each run", records.keys() == made.keys()),
        (f"{good} of them ok", len(trained) == good),
        ("equal to those of an undisturbed sweep", len(equal) == len(trained)),
        (f"{len(poison)} that say what happened: killed, memory, timeout, diverged", right == poison),
        ("the failed ones have a traceback", all(len(str(by_seed[s].error)) > 40 for s in poison if s in EXPECTED)),
        ("no claim is left", not Claims(folder).all()),
        ("no temporary file is left", not list(folder.rglob("*.tmp"))),
        ("results.csv has a row a run", len((folder / "results.csv").read_text().splitlines()) >= number + 1),
        ("no process is left", ended(sessions)),
    ]


def ended(sessions: list[int]) -> bool:
    """Whether all processes go; those that Python itself starts beside workers notice a little later than these."""
    try:
        _wait(lambda: not any(alive(group) for group in sessions), 10, "processes to end")
    except TimeoutError:
        return False
    return True


def outcome(record: Record) -> str:
    """What must not depend on how a run came about."""
    return dumps([record.status, record.config, record.metrics, record.curve, record.cost, record.steps])


def mount(folder: Path) -> bool:
    """A small disk at the folder, where this user may."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _wait(until: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


def drill(number: int, seed: int, console: Console) -> bool:
    """Do all of it in a temporary folder, and say how it went."""
    with tempfile.TemporaryDirectory(prefix="mad-drill-") as place:
        calm, disturbed = Path(place, "calm"), Path(place, "disturbed")
        chosen = [run for run in runs(number) if run.seed not in EXPECTED]
        engine.execute(chosen, Store(calm, "drill"), engine.build("local", work), Display())
        undisturbed = {record.run_id: record for record in Store(calm).records()}
        disturbed.mkdir()
        mounted = mount(disturbed)
        exercise, began = Drill(disturbed, number, seed), time.perf_counter()
        try:
            exercise.run(mounted)
            results = check(disturbed, undisturbed, number, exercise.sessions)
        finally:
            for group in exercise.sessions:
                for pid in alive(group):
                    os.kill(pid, signal.SIGKILL)
            if mounted:
                subprocess.run(["umount", "-l", str(disturbed)], check=False)
    console.print(f"{number} runs in {time.perf_counter() - began:.0f} s; what was done to them:")
    if not mounted:
        exercise.log.append("the disk was not filled: this user may not mount a tmpfs")
    console.print("\n".join(f"  {line}" for line in exercise.log))
    for what, holds in results:
        console.print(f"{'[green]holds[/] ' if holds else '[red]FAILS[/] '} {what}")
    return all(holds for _, holds in results)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mad.drill", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=60, help=f"how many (60; at least {DIVERGES + 1}, so that all that break are in)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (0)")
    parser.add_argument("--sweep", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.sweep:
        sweep(Path(options.sweep), options.runs)
        return 0
    if options.runs <= DIVERGES:
        parser.error(f"--runs must be at least {DIVERGES + 1}, got {options.runs}")
    if not Path("/proc/self/stat").exists():
        parser.error("the drill needs Linux: it looks for processes in /proc")
    return 0 if drill(options.runs, options.seed, Console(highlight=False)) else 1


if __name__ == "__main__":
    sys.exit(main())
