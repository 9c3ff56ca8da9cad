"""trackio: the runs in a dashboard of one's own, in a browser, without an account or a network.

Each record is a run of the local project `mad`, under trackio's folder (TRACKIO_DIR, else in the cache of Hugging
Face); `trackio sync` is how to share it. Written through trackio's storage and not its `init`: that picks ids of its
own, asks who is logged in, takes the time of writing for that of the run, and swallows what goes wrong.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mad.records import Record, table
from mad.trackers.base import Published, Replay, board_id, environment, name, registry

PROJECT = "mad"
SHOW = f"trackio show --project {PROJECT}"
INSTALL = "pip install 'mad[trackio]'"
ELSEWHERE = ("SPACE_ID", "SERVER_URL", "BUCKET_ID", "DATASET_ID")  # TRACKIO_*: not local


@registry.register("trackio")
class Trackio(Replay):
    """Runs in the local project `mad`, grouped by sweep.

    Raises:
        ValueError: trackio is not installed.
    """

    title = "trackio"
    folder = "trackio"

    def __init__(self) -> None:
        if importlib.util.find_spec("trackio") is None:
            raise ValueError(f"tracker 'trackio' needs the package trackio: {INSTALL}")

    def where(self) -> str | None:
        return f"{_trackio().TRACKIO_DIR} {PROJECT}"

    def mode(self) -> str:
        return "local"

    def published(self, folder: Path, where: str) -> Published:
        """What is remembered and still there: runs may be deleted in the dashboard."""
        published = super().published(folder, where)
        with _local(), contextlib.suppress(ValueError):  # no such project: none
            there = {run.id for run in _trackio().Api().runs(PROJECT)}
            published.keep(there)
            return published
        published.keep(())
        return published

    def session(self, folder: Path) -> AbstractContextManager[None]:
        return _local()

    def show(self, record: Record, sweep: str, folder: Path) -> None:
        """A row a point of the curve, the final numbers with the last; what it cost is in bars beside the curves."""
        rows = {int(point["step"]): {key: point[key] for key in point if key != "step"} for point in record.curve}
        final = rows.setdefault(max([record.steps, *rows]), {})
        final.update({f"final/{key}": value for key, value in record.metrics.items()})
        costs = {**record.cost, "seconds": record.seconds}
        final.update({f"cost/{key}": _number(value) for key, value in costs.items()})
        about = {"status": record.status, "device": record.device, "error": record.last_error}
        about["git_commit"] = record.git_commit
        config = {**_flat(record.config), **about, **_flat(record.versions, "versions.")}
        _write(record.run_id, name(record), sweep, rows, config, record.started)

    def show_leaderboard(self, records: Sequence[Record], sweep: str, folder: Path, whole: str) -> None:
        """A table, under Media & Tables."""
        from mad import leaderboard  # pandas, half a second; and it publishes by this module

        board = leaderboard.build(table(records))
        cells = board.astype(object).where(board.notna(), None)
        ranking = {"_type": _trackio().Table.TYPE, "_value": cells.to_dict(orient="records")}
        _write(board_id(sweep), f"leaderboard {sweep}", sweep, {0: {"leaderboard": ranking}}, {}, None)

    def tell(self, folder: Path) -> None:
        print(f"trackio: to see it in a browser: {SHOW}")


def _write(
    run_id: str,
    title: str,
    sweep: str,
    rows: Mapping[int, Mapping[str, Any]],
    config: dict[str, Any],
    started: str | None,
) -> None:
    """One run, in place of an earlier one with this id."""
    storage = _trackio().SQLiteStorage
    created = started or datetime.now(UTC).isoformat()
    storage.delete_run(PROJECT, title, run_id=run_id)
    storage.bulk_log(
        project=PROJECT,
        run=title,
        run_id=run_id,
        metrics_list=list(rows.values()),
        steps=list(rows),
        timestamps=[created] * len(rows),
        config={**config, "_Group": sweep, "_Created": created, "_Username": None},
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, as on the command line: the dashboard groups runs by them."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item})
    return flat


def _number(value: float) -> float:
    """JSON there has integers of 64 bits; FLOPs may have more."""
    return value if abs(value) < 2**63 else float(value)


def _trackio() -> Any:
    return importlib.import_module("trackio")  # half a second


def _local() -> AbstractContextManager[None]:
    """Without what would have trackio write to, or read from, somewhere else."""
    return environment(**{f"TRACKIO_{key}": None for key in ELSEWHERE})
