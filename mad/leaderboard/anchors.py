"""Published scores, to be shown beside ours: `--anchors FILE`.

The file is CSV with one row an architecture: its name in a column `arch` or `architecture`, scores in columns named
like tasks or `mean`, and, where there are any, `layers` or `stack` (layer names), `params`, `flops`, `state_size`.

An architecture stands beside the row of its name, or else beside the rows of its stack; one that has no such row gets a
row of its own. A published mean is that over the board's tasks. It is the column `mean` only where the file has no task
at all, and there is none where the file lacks a task, since it would be a mean over something else.
"""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mad.leaderboard.build import COST, Frame, stacks, task_columns
from mad.records import read_csv
from mad.registry import nearest, unknown

NAMES = ("arch", "architecture")
STACKS = ("layers", "stack")
TYPO = 0.9  # so near to a task's name, a column is meant for it; the tasks of the protocol are less alike


@dataclass(frozen=True)
class Anchor:
    """One published architecture."""

    name: str
    values: dict[str, float]  # by column of the board: tasks, mean, params, flops, state_size
    beside: list[str] = field(default_factory=list)  # the board's architectures that it is


@dataclass(frozen=True)
class Anchors:
    """The published architectures of a file, as they go with a board."""

    rows: list[Anchor]
    left_out: list[str]  # columns that the board does not have

    def beside(self, arch: str) -> Anchor | None:
        """What was published of a row of the board."""
        return next((row for row in self.rows if arch in row.beside), None)

    @property
    def alone(self) -> list[Anchor]:
        """Those without a row of the board."""
        return [row for row in self.rows if not row.beside]


def read_anchors(path: str | Path) -> pd.DataFrame:
    """The file, its names in the column `arch`.

    Raises:
        ValueError: not a CSV file, or one without a column of names, a name in each row, or any row.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"anchors {str(file)!r} does not exist; expected a CSV file with one row an architecture")
    try:
        table: Frame = read_csv(file, (*NAMES, *STACKS).__contains__)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"anchors {str(file)!r} is not a CSV file: {str(error).strip()}") from error
    name = next((column for column in NAMES if column in table), None)
    if name is None:
        hint = next((h for h in (nearest(column, map(str, table)) for column in NAMES) if h), "")
        raise ValueError(
            f"anchors {str(file)!r} lacks the column 'arch' or 'architecture'{hint}; got {', '.join(map(str, table))}"
        )
    table = table.rename(columns={name: "arch"})
    if table.empty or table["arch"].isna().any():
        raise ValueError(f"anchors {str(file)!r} needs at least one row, and a name of an architecture in each")
    return table


def match(published: Frame, board: Frame, table: Frame) -> Anchors:
    """The rows of `read_anchors` that belong to the rows of `board`, which was built from `table`.

    Raises:
        ValueError: no column is a score of the board, one is nearly so, or a score is not a number.
    """
    tasks = task_columns(board)
    own = [str(c) for c in published if c not in ("arch", *STACKS)]
    used = [c for c in own if c in (*tasks, "mean", *COST)]
    left_out = [c for c in own if c not in used]
    for column in left_out:
        if difflib.get_close_matches(column, [task for task in tasks if task not in own], n=1, cutoff=TYPO):
            raise unknown("score column of the anchors", column, (*tasks, "mean"))
    if not any(column not in COST for column in used):
        close = next((hint for hint in (nearest(column, (*tasks, "mean")) for column in left_out) if hint), "")
        raise ValueError(
            f"anchors: no column is a score of this board{close}; expected some of {', '.join((*tasks, 'mean'))}, "
            f"got {', '.join(own) or 'none'}"
        )
    for column in used:
        numbers: Frame = pd.to_numeric(published[column], errors="coerce")
        wrong = published[numbers.isna() & published[column].notna()]
        for arch, value in zip(wrong["arch"], wrong[column], strict=True):
            raise ValueError(f"anchors: {column} of {arch} must be a number, got {value!r}")
        published = published.assign(**{column: numbers})

    layers, taken = stacks(table), set[str]()
    names = {_plain(arch): str(arch) for arch in board["arch"]}
    found: list[Anchor] = []
    for _, row in published.iterrows():
        values = {column: float(row[column]) for column in used if pd.notna(row[column])}
        values = {key: value for key, value in values.items() if key != "mean"} | _mean(values, tasks, used)
        beside = [name for name in [names.get(_plain(row["arch"]))] if name is not None and name not in taken]
        found.append(Anchor(str(row["arch"]), values, beside))
        taken.update(beside)
    for anchor, (_, row) in zip(found, published.iterrows(), strict=True):
        stack = next((_layers(row[column]) for column in STACKS if column in row and pd.notna(row[column])), None)
        if stack and not anchor.beside:
            anchor.beside.extend(a for a in names.values() if a not in taken and _layers(layers.get(a, "")) == stack)
            taken.update(anchor.beside)
    return Anchors(found, left_out)


def _mean(values: dict[str, float], tasks: list[str], used: list[str]) -> dict[str, float]:
    if all(task in values for task in tasks):
        return {"mean": sum(values[task] for task in tasks) / len(tasks)}
    return {} if any(task in used for task in tasks) or "mean" not in values else {"mean": values["mean"]}


def _plain(name: Any) -> str:
    return "_".join(str(name).lower().replace("-", " ").replace("_", " ").split())


def _layers(text: Any) -> list[str]:
    """Layer names of 'hyena,swiglu', 'hyena-swiglu' or a JSON list of specs, whose options are not looked at."""
    try:
        specs = json.loads(text)
    except ValueError:
        return [name for name in str(text).replace("-", ",").replace(" ", "").split(",") if name]
    specs = specs if isinstance(specs, list) else [specs]
    return [str(spec.get("name", spec)) if isinstance(spec, dict) else str(spec) for spec in specs]
