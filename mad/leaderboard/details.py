"""What stands behind a leaderboard's rows: scores of every setting and optimiser point, learning curves, commands."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mad.leaderboard.build import SETTING, problems, scored, stacks
from mad.leaderboard.command import PARTS, overrides, quoted
from mad.leaderboard.scores import score_of
from mad.records import Record

PROVENANCE = ("device", "versions.mad", "versions.torch", "versions.plugins", "git_commit")

Cell = tuple[int, int]
Frame = Any  # as in build


@dataclass
class Details:
    """Of all architectures together. `parts` are those of `command` that most cells have; None without records."""

    score: str
    runs: int
    tasks: list[str]
    settings: list[dict[str, Any]]  # task (its number), label, parts (task, train)
    grid: list[dict[str, Any]]  # label, parts (optim)
    rows: dict[str, "Row"]  # by architecture, as on the board
    provenance: dict[str, list[str]]  # column -> its different values


@dataclass
class Row:
    """Of one architecture. A cell is (number of the setting, number of the optimiser point)."""

    scores: dict[Cell, float | str] = field(default_factory=dict)  # mean over the seeds, or 'diverged' or 'failed'
    best: list[float | str] = field(default_factory=list)  # of each of its settings: the score as it counts
    spread: bool = False  # whether there are several seeds, so that `best` is not the highest of `scores`
    commands: dict[Cell, dict[str, str] | None] = field(default_factory=dict)  # None where no record says it
    curves: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # setting -> steps, scores
    stack: str = ""
    about: str = ""  # width and other options of the model
    parts: dict[str, str] | None = None  # arch, seed


class Run(NamedTuple):
    score: float  # as it counts; NaN of a failed run
    status: str
    record: Record | None


def details(table: pd.DataFrame, records: Iterable[Record] = (), score: str | None = None) -> Details:
    """Collect what stands behind `build(table, score)`; curves and commands are those of `records`, by run id."""
    runs: Frame = scored(table, score)
    score = score or score_of(table)
    runs["setting"], settings = _settings(table, runs)
    runs["point"], grid = _grid(table)
    by_id: dict[Any, Record] = {record.run_id: record for record in records}
    ids = table["run_id"] if "run_id" in table else [None] * len(table)
    layers, about = stacks(table), _about(table, runs)

    cells: dict[str, dict[Cell, dict[Any, Run]]] = {str(arch): {} for arch in sorted(runs["arch"].unique())}
    fields = (runs[key].tolist() for key in ("arch", "setting", "point", "seed", "score", "status"))
    for arch, setting, point, seed, value, status, run_id in zip(*fields, ids, strict=True):
        seeds, run = cells[arch].setdefault((setting, point), {}), Run(value, status, by_id.get(run_id))
        if seed not in seeds or not value <= seeds[seed].score:  # better, or that one has no score
            seeds[seed] = run
    quote, rows = _Quote(), dict[str, Row]()
    for arch, of in cells.items():
        rows[arch] = _row(of, quote, score)
        rows[arch].stack, rows[arch].about = _stack(layers.get(arch)), about[arch]
    _usual(rows, settings, grid)
    seen = {c: sorted(table[c].dropna().astype(str).unique()) for c in PROVENANCE if c in table}
    tasks = sorted(runs["task"].unique())
    for setting in settings:
        setting["task"] = tasks.index(setting["task"])
    return Details(score, len(table), tasks, settings, grid, rows, seen)


class _Quote:
    """The parts of a configuration's command; equal parts of many runs are quoted once."""

    def __init__(self):
        self.known: dict[str, str] = {}

    def __call__(self, config: dict[str, Any]) -> dict[str, str]:
        return {part: self._text(given) for part, given in overrides(config).items()}

    def _text(self, given: dict[str, Any]) -> str:
        key = json.dumps(given)
        if key not in self.known:
            self.known[key] = quoted(given)
        return self.known[key]


def _row(cells: dict[Cell, dict[Any, Run]], quote: _Quote, score: str) -> Row:
    """Of one architecture, from the best run of each seed in each cell."""
    row = Row()
    highest: dict[int, float] = {}
    for cell in sorted(cells):
        runs = [cells[cell][seed] for seed in sorted(cells[cell])]
        known = [run.score for run in runs if not math.isnan(run.score)]
        have = [run.record for run in runs if run.record is not None]
        whole = [record for record in have if all(part in record.config for part in PARTS)]  # not written by others
        row.commands[cell] = _command(whole, quote) if whole else None
        if not known:
            row.scores[cell] = "failed"
            continue
        mean = sum(known) / len(known)
        row.scores[cell] = "diverged" if all(run.status == "diverged" for run in runs) else mean
        if mean > highest.get(cell[0], -math.inf):
            highest[cell[0]] = mean
            row.curves.pop(cell[0], None)
            curve = _points(have[0], score) if have else None
            if curve:
                row.curves[cell[0]] = curve
    of_setting: dict[int, dict[Any, float]] = {}  # the best of each seed
    for (setting, _), seeds in sorted(cells.items()):
        best = of_setting.setdefault(setting, {})
        for seed, run in seeds.items():
            if not math.isnan(run.score):
                best[seed] = max(run.score, best.get(seed, -math.inf))
    row.best = [sum(best.values()) / len(best) if best else "failed" for best in of_setting.values()]
    row.spread = len({seed for seeds in cells.values() for seed in seeds}) > 1
    return row


def _command(records: list[Record], quote: _Quote) -> dict[str, str]:
    """The first seed's command, with all seeds for which it is the same."""
    own = [quote(record.config) for record in records]
    same = [parts for parts in own if all(parts[part] == own[0][part] for part in PARTS if part != "seed")]
    return own[0] | {"seed": f"seed={','.join(parts['seed'].partition('=')[2] for parts in same)}"}


def _usual(rows: dict[str, Row], settings: list[dict[str, Any]], grid: list[dict[str, Any]]) -> None:
    """The parts of commands that most cells of a setting, of an optimiser point, of an architecture have."""

    def most(of: list[dict[str, str]], keys: tuple[str, ...]) -> dict[str, str] | None:
        return dict(Counter(tuple((key, own[key]) for key in keys) for own in of).most_common(1)[0][0]) if of else {}

    cells = [(cell, own) for row in rows.values() for cell, own in row.commands.items() if own]
    by: dict[Cell, list[dict[str, str]]] = {}
    for cell, own in cells:
        for axis in (0, 1):
            by.setdefault((axis, cell[axis]), []).append(own)
    for axis, entries, keys in ((0, settings, ("task", "train")), (1, grid, ("optim",))):
        for number, entry in enumerate(entries):
            entry["parts"] = most(by.get((axis, number), []), keys)
    for row in rows.values():
        row.parts = most([own for own in row.commands.values() if own], ("arch", "seed"))


def _settings(table: Frame, runs: Frame) -> tuple[Frame, list[dict[str, Any]]]:
    """Settings by task and options, with labels of what tells them apart (all options where a task has one setting)."""
    first = problems(table).loc[~runs["setting"].duplicated()]  # a row each
    columns = [c for c in first if c != "task"]
    paths = table.get("task.path", pd.Series(dtype=object))
    first = first.assign(task=runs["task"], setting=runs["setting"])
    found = []
    for task, of in first.groupby("task"):
        varied = [c for c in columns if of[c].nunique(dropna=False) > 1]
        shown = varied or [c for c in columns if c not in SETTING]
        for _, row in of.iterrows():
            options = [(c.partition(".")[2], row[c]) for c in shown if pd.notna(row[c])]
            if "task.digest" in varied and pd.notna(paths.get(row.name)):  # which corpus people would not know by that
                options.insert(0, ("path", Path(str(paths[row.name])).name))
            label = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in options)
            found.append((task, [_order(row[c]) for c in shown], int(row["setting"]), label))
    found.sort(key=lambda item: (item[0], item[1]))
    numbers = {setting: i for i, (_, _, setting, _) in enumerate(found)}
    return runs["setting"].map(numbers), [{"task": task, "label": label} for task, _, _, label in found]


def _grid(table: Frame) -> tuple[Frame, list[dict[str, Any]]]:
    """Points of the optimiser grid; a label says the learning rate, the weight decay, and what else differs."""
    columns = [c for c in table if c in ("lr", "weight_decay") or str(c).startswith("optim.")]
    if not columns:
        return pd.Series(0, table.index), [{"label": "all runs"}]
    numbers = table.groupby(columns, dropna=False).ngroup()
    shown = [c for c in columns if c in ("lr", "weight_decay") or table[c].nunique(dropna=False) > 1]
    labels = {}
    for number, row in zip(numbers, table[shown].itertuples(index=False), strict=True):
        if number not in labels:
            values = [(c.removeprefix("optim."), value) for c, value in zip(shown, row, strict=True) if pd.notna(value)]
            labels[number] = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in values)
    return numbers, [{"label": labels[number] or "all runs"} for number in sorted(labels)]


def _about(table: Frame, runs: Frame) -> dict[str, str]:
    """Width and other options of each architecture's model."""
    columns = [c for c in table if str(c).startswith("arch.") and c != "arch.max_length"]
    first = table.loc[~runs["arch"].duplicated()]
    return {
        str(runs["arch"][index]): ", ".join(
            f"{c.removeprefix('arch.').replace('_', ' ')} {_value(row[c])}" for c in columns if pd.notna(row[c])
        )
        for index, row in first.iterrows()
    }


def _stack(text: str | None) -> str:
    """A stack for reading: layers with their options, repeats folded."""
    if not text:
        return ""
    try:
        specs = json.loads(text)
    except ValueError:
        specs = text.split("-")
    names = [_layer(spec) for spec in (specs if isinstance(specs, list) else [specs])]
    for period in range(1, len(names)):
        times, rest = divmod(len(names), period)
        if not rest and names == names[:period] * times:
            block = " → ".join(names[:period])
            return f"{block if period == 1 else f'({block})'} × {times}"
    return " → ".join(names)


def _layer(spec: Any) -> str:
    if not isinstance(spec, dict):
        return str(spec)
    if "parallel" in spec:
        return " | ".join(_layer(branch) for branch in spec["parallel"])
    options = ", ".join(f"{key} {_value(value)}" for key, value in spec.items() if key != "name")
    return f"{spec.get('name')} ({options})" if options else str(spec.get("name"))


def _points(record: Record, score: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and scores of a record's curve; None where it has none."""
    points = [(p["step"], p[score]) for p in record.curve if "step" in p and np.isfinite(p.get(score, np.nan))]
    return tuple(np.asarray(points, float).T) if points else None  # type: ignore[return-value]


def _order(value: Any) -> tuple:
    number = isinstance(value, (int, float, np.number)) and not math.isnan(value)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
