"""What a tracker is: something that is shown the records of a sweep when it is over.

`Replay` is what those that keep runs have in common: what was published is remembered in `<folder>/<tracker>/
published.json`, one run after the other, for each place it went to. So publishing again shows what is new or has
changed, an interrupted publication goes on where it was, and a sweep that was written offline is uploaded in whole
once there is a login. Runs there have the ids of ours: showing one again updates it.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mad.records import Record, dumps, loads, replace
from mad.registry import Registry

log = logging.getLogger(__name__)

registry = Registry("tracker")
names, build = registry.names, registry.build


class Tracker:
    """Shown the records of a sweep after they are safe."""

    def publish(self, records: Sequence[Record], sweep: str, folder: str | Path) -> bool:
        """Show `records`; what was shown before, unchanged, is not shown again.

        Never raises for trouble of the tracker's own (no network, no package): that is logged as a warning.

        Args:
            records: of the sweep, in any order.
            sweep: its name.
            folder: its results folder, where the tracker may keep files of its own.

        Returns:
            Whether all of them are shown now.
        """
        raise NotImplementedError

    def outline(self, records: Sequence[Record], sweep: str, folder: str | Path) -> str:
        """What `publish` would do, in a line. Nothing is written, and no network used."""
        raise NotImplementedError

    def idle(self, records: Sequence[Record], sweep: str, folder: str | Path) -> str | None:
        """The `outline`, where `publish` would do nothing and say nothing; else None."""
        return self.outline(records, sweep, folder)


@dataclass
class Plan:
    """What a publication has to do."""

    digests: dict[str, str]  # of all records, by run id
    new: list[Record]  # not shown yet, or changed since
    whole: str  # digest of the leaderboard: of all records
    board: bool  # whether the leaderboard is to be shown


class Replay(Tracker):
    """A tracker that keeps each record as a run, and the leaderboard as one more."""

    title = ""  # as people write it
    folder = ""  # its own, in the results folder

    def publish(self, records: Sequence[Record], sweep: str, folder: str | Path) -> bool:
        folder = Path(folder)
        try:
            where = self.where()
            if where is None:
                return True
            published = self.published(folder, where)
            plan = self.plan(records, sweep, published)
            if not plan.board:
                return True
            print(f"{self.title}: publishing {len(plan.new)} runs and the leaderboard ({self.mode()})", flush=True)
            with self.session(folder):
                for record in plan.new:
                    self.show(record, sweep, folder)
                    published.add(record.run_id, plan.digests[record.run_id])
                self.show_leaderboard(records, sweep, folder, plan.whole)
                published.add(board_id(sweep), plan.whole)
            self.tell(folder)
        except Exception as error:  # whatever it is, the results are safe
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}{self.advice(error)}"
            rest = "" if isinstance(error, Unwritable) else "; the same command publishes the rest"
            log.warning("%s: %s. The results in %s are complete%s", self.title, reason, folder, rest)
            return False
        return True

    def outline(self, records: Sequence[Record], sweep: str, folder: str | Path) -> str:
        return self._outline(records, sweep, folder)[0]

    def idle(self, records: Sequence[Record], sweep: str, folder: str | Path) -> str | None:
        try:
            outline, idle = self._outline(records, sweep, folder)
        except Exception:  # as storage that cannot be read: `publish` meets it too, and says it
            return None
        return outline if idle else None

    def _outline(self, records: Sequence[Record], sweep: str, folder: str | Path) -> tuple[str, bool]:
        """What `publish` would do, and whether that is nothing."""
        where, place = self.where(), self.place()
        if where is None:
            return f"{self.title} is disabled: nothing would be published", True
        plan, runs = self.plan(records, sweep, self.published(Path(folder), where)), len(records)
        if not plan.board:
            return f"{self.title}: nothing is new, {runs} runs and the leaderboard are published, to {place}", True
        new = f"{len(plan.new)} of {runs} runs and the leaderboard"
        return f"{self.title}: {new} would be published, to {place}", False

    def plan(self, records: Sequence[Record], sweep: str, published: "Published") -> Plan:
        digests = {record.run_id: digest(vars(record)) for record in records}
        new = [record for record in records if not published.has(record.run_id, digests[record.run_id])]
        whole = digest([sweep, sorted(digests.values())])
        return Plan(digests, new, whole, bool(new) or not published.has(board_id(sweep), whole))

    def published(self, folder: Path, where: str) -> "Published":
        return Published(folder / self.folder / "published.json", where)

    def where(self) -> str | None:
        """The place that publications go to now, None: nowhere. Memory is kept apart by it."""
        raise NotImplementedError

    def place(self) -> str:
        """`where` for people."""
        return self.where() or "nowhere"

    def mode(self) -> str:
        """For people: online, offline, ..."""
        raise NotImplementedError

    def session(self, folder: Path) -> AbstractContextManager[None]:
        """Around all that is shown in one publication."""
        return contextlib.nullcontext()

    def show(self, record: Record, sweep: str, folder: Path) -> None:
        """One record as one run; raises where it did not get there."""
        raise NotImplementedError

    def show_leaderboard(self, records: Sequence[Record], sweep: str, folder: Path, whole: str) -> None:
        """The ranking as one run of its own; raises where it did not get there."""
        raise NotImplementedError

    def tell(self, folder: Path) -> None:
        """Say what to do next to see it."""

    def advice(self, error: Exception) -> str:
        """What may help against `error`, to stand after it."""
        return ""


class Unwritable(OSError):
    """The results folder is only read, and the tracker has files to keep there: the same command does no more."""


class Published:
    """What a place has: digests of the records by run id, and of all of them by the id of the leaderboard's run."""

    def __init__(self, path: Path, where: str):
        self.path, self.where, self.kept = path, where, True
        self.digests = self._read().get(where, {})

    def has(self, key: str, digest: str) -> bool:
        return self.digests.get(key) == digest

    def add(self, key: str, digest: str) -> None:
        """Kept on disk at once: a publication that is interrupted goes on where it was. Where it cannot be, as in
        somebody else's folder, that is said once, and is no reason not to publish."""
        self.digests[key] = digest
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace(self.path, dumps({**self._read(), self.where: self.digests}))
        except OSError as error:
            if self.kept:
                log.warning("%s: %s. What is published is not remembered: publishing again sends it again",
                            self.path, error.strerror or error)  # fmt: skip
            self.kept = False

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all others; on disk with the next `add`."""
        keys = set(keys)
        self.digests = {key: value for key, value in self.digests.items() if key in keys}

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            given = loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or unreadable: publish again
            return {}
        return (
            {key: value for key, value in given.items() if isinstance(value, dict)} if isinstance(given, dict) else {}
        )


def name(record: Record) -> str:
    """'hyena · mqar · lr 0.0005 · wd 0.1 · seed 0'."""
    config = record.config
    arch, task, optim = (config.get(key) or {} for key in ("arch", "task", "optim"))
    grid = f"lr {optim.get('lr')} · wd {optim.get('weight_decay')} · seed {config.get('seed')}"
    return f"{arch.get('name') or arch.get('stack')} · {task.get('name')} · {grid}"


def board_id(sweep: str) -> str:
    """The id of the run that holds the leaderboard: one a sweep."""
    return f"leaderboard-{slug(sweep)}"


def slug(sweep: str) -> str:
    """A sweep's name as part of an id."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", sweep)[:100]


def digest(value: Any) -> str:
    return hashlib.sha256(dumps(value).encode()).hexdigest()[:16]


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """These variables for a while; None: without it."""
    before = {key: os.environ.get(key) for key in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
