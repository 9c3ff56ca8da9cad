"""A sweep's folder of records.

The files are the truth; `results.csv` is derived from them, and a run is done when its file says so. A record is
written to a temporary file and renamed, so a reader sees a whole record or none, and a process that is killed costs
at most its own unfinished runs.

    results/<sweep>/store.json            schema version and sweep name
    results/<sweep>/runs/<run id>.json    one record each
    results/<sweep>/records.jsonl.gz      those of earlier machines, or packed for the next one; where a run has a file
                                          of its own as well, that one counts
    results/<sweep>/results.csv           one row a run, failed and diverged ones too
    results/<sweep>/plans/<digest>.json   what a command meant to run, for `python -m mad.status`
    results/<sweep>/claims/               who is running what; see `mad.records.claims`
"""

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mad.records import packed
from mad.records.files import dumps, loads, replace
from mad.records.record import DONE, RUN_ID, SCHEMA, Record
from mad.records.table import table, write_csv

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

FILES = f"{RUN_ID}.json"  # of records: names that are run ids, not another program's


class Store:
    """A sweep's folder of records. Nothing is made until `make`, `plan` or the first record.

    Nothing is cached either, but the packed records while their file stays as it is: several processes, on several
    machines, may write to one folder.

    Args:
        folder: `results/<sweep>`.
        sweep: the sweep's name, None: what the store says, or the folder's name.

    Raises:
        ValueError: the folder is a file, was written with another schema version, or belongs to another sweep.
    """

    def __init__(self, folder: str | Path, sweep: str | None = None):
        self.folder = Path(folder)
        self.runs, self.packed = self.folder / "runs", self.folder / packed.PACKED
        self.corrupt: list[Path] = []  # records that could not be read and were set aside
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"results folder {str(folder)!r} is a file; expected a folder, or a name not yet taken")
        about = self._about()
        if sweep is not None and about.get("sweep", sweep) != sweep:
            raise ValueError(
                f"results folder {str(folder)!r} holds the sweep {about['sweep']!r}, not {sweep!r}; choose another "
                f"folder (results_dir=...), or go on with that sweep (name={about['sweep']} results_dir={folder})"
            )
        self.sweep = sweep or about.get("sweep") or self.folder.resolve().name
        self._about_written, self._made = bool(about), False
        self._unpacked: tuple[tuple[int, int] | None, dict[str, str]] = (None, {})  # as of which file, and its records

    def write(self, record: Record) -> None:
        """Write one record, in place of an earlier one of the same run."""
        self._make()
        replace(self.runs / f"{record.run_id}.json", dumps(vars(record)))  # all of it plain: no need of a copy

    def exists(self) -> bool:
        """Whether a sweep has begun here, or records were brought, packed or each in its file."""
        brought = any(self.runs.glob(FILES))
        return self._about_written or self._made or brought or self.packed.exists()

    def make(self) -> None:
        """Make the folder, if it is not there yet.

        Raises:
            ValueError: it cannot be made, or not be written to.
        """
        try:
            self._make()
            probe = self.folder / f".{secrets.token_hex(4)}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"results folder {str(self.folder)!r} cannot be written to ({error}); choose another (results_dir=...)"
            ) from error

    def _make(self) -> None:
        if not self._made:
            self.runs.mkdir(parents=True, exist_ok=True)
            if not self._about_written:
                replace(self.folder / "store.json", dumps({"schema": SCHEMA, "sweep": self.sweep}))
            self._made = True

    def plan(self, runs: Mapping[str, str]) -> None:
        """Note what a command is about to do, run id -> what one calls it; `planned` has those of all commands.

        Raises:
            ValueError: the folder cannot be written to.
        """
        self.make()
        text = dumps(dict(sorted(runs.items())))
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        with contextlib.suppress(OSError):  # a full disk costs what `mad.status` would say of runs to come
            (self.folder / "plans").mkdir(exist_ok=True)
            replace(self.folder / "plans" / f"{name}.json", text)

    def planned(self) -> dict[str, str]:
        """All runs that were ever planned here."""
        found: dict[str, str] = {}
        for path in (self.folder / "plans").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                found.update(loads(path.read_text(encoding="utf-8")))
        return found

    def stamp(self, run_id: str) -> tuple[int, int] | None:
        """Tells one version of a run's own file from another; None: there is none."""
        return _stamp(self.runs / f"{run_id}.json")

    def read(self, run_id: str) -> Record | None:
        """The record of a run, its own file's unless only the packed one is a result; None if there is none. A file
        that cannot be read is set aside, as if it were not there.

        Raises:
            ValueError: the record was written with another schema version, or the packed ones are damaged.
        """
        own = self._own(run_id)
        if own is not None and own.status in DONE:
            return own
        text = self._packed_records().get(run_id)
        carried = None if text is None else _record(self.packed, text, run_id)
        return carried if own is None or (carried is not None and carried.status in DONE) else own

    def _own(self, run_id: str) -> Record | None:
        """That of the run's own file."""
        path = self.runs / f"{run_id}.json"
        try:
            return _record(path, path.read_text(encoding="utf-8"), run_id)
        except FileNotFoundError:
            pass
        except OtherSchema:
            raise
        except ValueError as error:  # not UTF-8, not JSON, or not a record
            aside = path.with_name(path.name + ".corrupt")
            what = f"set aside as {aside.name}"
            try:
                os.replace(path, aside)
            except OSError:  # another reader was faster, or the folder is not ours to change
                what = "left out"
            log.warning("%s cannot be read (%s); %s, the run counts as not done", path, error, what)
            self.corrupt.append(aside)
        return None

    def records(self) -> list[Record]:
        """All records that can be read, by architecture, task and optimiser."""
        return sorted((record for record in map(self.read, self._ids()) if record is not None), key=_order)

    def check(self) -> None:
        """Read all records once, before a sweep trains for hours what it could not put into a table at its end.

        Raises:
            ValueError: a record was written with another schema version, or the packed ones are damaged.
        """
        for run_id in self._ids():
            self.read(run_id)

    def _ids(self) -> set[str]:
        return {path.stem for path in self.runs.glob(FILES)} | self._packed_records().keys()

    def pack(self) -> Path:
        """Write all records, those packed before too, to `records.jsonl.gz`; the files in runs/ stay."""
        packed.write(self.packed, self.records())
        return self.packed

    def _packed_records(self) -> dict[str, str]:
        stamp = _stamp(self.packed)
        if stamp != self._unpacked[0]:
            self._unpacked = (stamp, packed.read(self.packed))
        return self._unpacked[1]

    def done(self, run_id: str) -> bool:
        """Whether there is a result, so that the run need not run again; a failed run has none."""
        record = self.read(run_id)
        return record is not None and record.status in DONE

    def table(self) -> "pandas.DataFrame":
        """One row a run; see `mad.records.table`."""
        return table(self.records())

    def write_csv(self) -> Path:
        """Write `results.csv` afresh from the records; again, if meanwhile another process has written some."""
        path = self.folder / "results.csv"
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(3):  # one that writes on and on makes its own in the end
            seen = self._changed()
            write_csv(self.records(), path)
            if seen:
                os.utime(path, ns=(seen, seen))  # as of when it is: whoever replaced a newer one is found out
            if not self.csv_is_older():
                break
        return path

    def csv_is_older(self) -> bool:
        """Whether there are records since `results.csv`, of a process that came to no end or of another machine, or
        there is none."""
        try:
            return (self.folder / "results.csv").stat().st_mtime_ns < self._changed()
        except OSError:
            return True

    def _changed(self) -> int:
        """When there was last a new record: nanoseconds, by the clock of the disk."""
        return max((path.stat().st_mtime_ns for path in (self.runs, self.packed) if path.exists()), default=0)

    def _about(self) -> dict[str, Any]:
        path = self.folder / "store.json"
        try:
            about = loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); remove it, and it is written afresh") from error
        if not isinstance(about, dict) or "schema" not in about:
            raise ValueError(f"{path} has no 'schema'; it was not written by mad, choose another results folder")
        _check_schema(path, about["schema"])
        return about


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino


def _record(path: Path, text: str, run_id: str) -> Record:
    """The record of a run that `text`, from `path`, is; ValueError if it is none."""
    given = loads(text)
    if isinstance(given, dict):
        _check_schema(path, given.get("schema", SCHEMA))
        for key in given.keys() - Record.__dataclass_fields__:
            raise OtherSchema(
                f"{path} has the field {key!r}, which this mad does not know: a later mad wrote it; use that one, or "
                "choose another results folder (results_dir=...)"
            )
    record = Record.from_dict(given)
    if record.run_id != run_id:
        raise ValueError(f"it is the record of run {record.run_id!r}")
    return record


class OtherSchema(ValueError):
    """Written by another version of mad: kept as it is, for that version to read."""


def _check_schema(path: Path, schema: Any) -> None:
    if schema != SCHEMA:
        raise OtherSchema(
            f"{path} was written with schema {schema!r}, this mad reads and writes schema {SCHEMA}; choose another "
            "results folder (results_dir=...), move this one away, or use the mad that wrote it"
        )


def _order(record: Record) -> tuple:
    """By what was run, so that the order of rows does not tell when they ran."""
    arch, task, optim = (record.config.get(key) or {} for key in ("arch", "task", "optim"))
    names = (str(arch.get("name")), dumps(arch), str(task.get("name")), dumps(task))
    return *names, *(_number(optim.get(key)) for key in ("lr", "weight_decay")), record.run_id


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
