"""Who does what: a claim is a file that one process made, so several processes, on several machines, share a sweep.

    results/<sweep>/claims/<run id>.<generation>     the owner; touched every few seconds while it lives

A claim is made with O_EXCL: of several that try, one wins. It is stale when its owner is known to be dead (a process of
this machine that is gone), or when the file has not been touched for a while *by the observer's own monotonic clock*:
clocks of two machines, and clocks that jump, are never compared. A stale claim is taken over by making the next
generation, where again one wins; nothing is removed that another process may just have made.

A claim only saves work. What is counted is the record, one file a run, whoever writes it.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mad.records.files import dumps, loads

HEARTBEAT = 5.0  # seconds between two touches
STALE = 60.0  # seconds without one after which the owner is taken for dead


@dataclass(frozen=True)
class Claim:
    """A claim as it is read: host and pid of the owner, since when (UTC seconds, by the owner's clock)."""

    run_id: str
    generation: int
    host: str | None = None
    pid: int | None = None
    since: float | None = None
    machine: str | None = None  # which process numbers the pid is one of
    born: str | None = None  # when that process began, since numbers are used again
    touched: float | None = None  # the last sign of life (UTC seconds, by the clock of the disk)


class Claims:
    """The claims of one sweep's folder, as one process sees and makes them; a context in which they are kept alive."""

    def __init__(
        self,
        folder: str | Path,
        *,
        heartbeat: float = HEARTBEAT,
        stale: float = STALE,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.heartbeat, self.stale_after, self.clock = Path(folder) / "claims", heartbeat, stale, clock
        self._held: dict[str, Path] = {}
        self._seen: dict[Path, tuple[int, float]] = {}  # file -> when it was touched, and since when we know
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Claims":
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """What is still held is given back, so that others need not wait until it is stale."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        for run_id in list(self._held):
            self.release(run_id)

    def take(self, run_id: str) -> bool:
        """Make the run ours; False while another process has it.

        Raises:
            OSError: the file cannot be made: no permission, no space.
        """
        if run_id in self._held:
            return True
        latest = self._latest(run_id)
        generation = 1
        if latest is not None:
            if not self._stale(latest):
                return False
            generation = int(latest.suffix[1:]) + 1
        path = self.folder / f"{run_id}.{generation}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(made, "w", encoding="utf-8") as file:
                file.write(dumps(_self() | {"since": time.time()}))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._held[run_id] = path
        return True

    def release(self, run_id: str) -> None:
        """Give the run up: it is recorded, or somebody else's."""
        path = self._held.pop(run_id, None)
        if path is not None:
            self._unlink(path)

    def clear(self, recorded: Callable[[str], bool]) -> None:
        """Remove what was left by owners that died after writing a record, before giving its claim back.

        Args:
            recorded: whether the run of an id has its result. No one begins such a run, whatever claims there are, and
                an owner that lives is about to give its own back: so none of them is needed.
        """
        with contextlib.suppress(OSError, ValueError):  # it is but tidying up
            for path in _newest(self.folder):
                if recorded(path.stem):
                    self._unlink(path)

    def all(self) -> list[Claim]:
        """The newest claim of each run, stale ones too."""
        return [_read(path) for path in _newest(self.folder)]

    def dead(self, claim: Claim) -> bool:
        """Whether the owner is known to be gone. False: it lives, or is on another machine."""
        here = _self()
        if claim.machine is None or claim.machine != here["machine"] or claim.pid is None:
            return False
        return _born(claim.pid) != claim.born

    def _latest(self, run_id: str) -> Path | None:
        return next(iter(_newest(self.folder, run_id)), None)

    def _unlink(self, path: Path) -> None:
        """Remove a claim and the earlier ones of its run; it goes last: until then nobody else begins afresh."""
        for generation in range(1, int(path.suffix[1:]) + 1):
            with contextlib.suppress(OSError):
                path.with_suffix(f".{generation}").unlink()

    def _stale(self, path: Path) -> bool:
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:  # given back just now; the next attempt will see
            return False
        now = self.clock()
        known = self._seen.get(path)
        if known is None or known[0] != touched:
            self._seen[path] = (touched, now)
            return self.dead(_read(path))
        return now - known[1] > self.stale_after or self.dead(_read(path))

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):
                    os.utime(path)


def _newest(folder: Path, run_id: str = "*") -> list[Path]:
    """The file of the last generation, one a run."""
    newest: dict[str, Path] = {}
    for path in folder.glob(f"{run_id}.*"):
        if path.suffix[1:].isdigit():
            other = newest.get(path.stem)
            if other is None or int(other.suffix[1:]) < int(path.suffix[1:]):
                newest[path.stem] = path
    return list(newest.values())


def _read(path: Path) -> Claim:
    """A claim that is being written, or cannot be read, has no owner."""
    given: Any = {}
    touched = None
    with contextlib.suppress(OSError, ValueError):
        touched = path.stat().st_mtime
        given = loads(path.read_text(encoding="utf-8"))
    fields = ("host", "pid", "since", "machine", "born")
    owner = {key: given.get(key) for key in fields} if isinstance(given, dict) else {}
    return Claim(path.stem, int(path.suffix[1:]), touched=touched, **owner)


def _self() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "born": _born(pid)}


def _machine() -> str:
    """Names the set of process numbers: this boot of this machine, and in it this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str | None:
    """When the process began, in the kernel's ticks; "" where only its existence can be told; None: there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        if os.name == "nt":  # asking by a signal would send one
            return ""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]
