"""Records as a table: one row a run, for pandas and as CSV.

A dotted column (`task.vocab_size`, `train.epochs`) is the config key as it is typed on the command line; `lr`,
`weight_decay` and `seed`, which every reader asks for, stand plain.
"""

import csv
import io
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mad.config import YOUNGER
from mad.records.files import dumps, replace
from mad.records.record import Record

if TYPE_CHECKING:
    import pandas

COST = ("params", "params_nonembedding", "params_active", "flops", "state_size", "seq_len")  # of the model
COST += ("tokens", "unique_tokens", "flops_exact", "flops_6nd")  # of the run


def table(records: Iterable[Record]) -> "pandas.DataFrame":
    """The rows of `records` as a data frame; a run that lacks a column's value has NaN there."""
    import pandas  # half a second that a worker need not pay

    columns, rows = _rows(records)
    return pandas.DataFrame(rows, columns=columns)


def read_csv(path: Path, texts: Callable[[str], bool]) -> Any:
    """A CSV file as a data frame; an empty cell is NaN.

    In columns that are `texts` any other cell is what is written there: to pandas the names None, NA and null would be
    no names, and 007 a number. In the others its words for a missing number are one.

    Raises:
        ValueError: a row has more cells than there are names, and what is beyond is not empty.
        pandas' own errors, where it is no table.
    """
    import pandas

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = pandas.read_csv(path, low_memory=False, index_col=False)  # else the first column would be no column
    if any(issubclass(warning.category, pandas.errors.ParserWarning) for warning in said):
        _check_surplus(path, len(found.columns))
    options: Any = {"dtype": str, "keep_default_na": False, "na_values": [""], "index_col": False}
    words = pandas.read_csv(path, usecols=texts, **options)
    return found.assign(**{str(column): words[column] for column in words})


def _check_surplus(path: Path, names: int) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file)):
            if any(row[names:]):
                raise ValueError(
                    f"{path} has {names} names in its first row, but row {number} has {len(row)} cells: {row[names:]}"
                )


def write_csv(records: Iterable[Record], path: Path) -> None:
    """The rows of `records` as CSV, written in one piece; None and NaN are empty, infinity is `inf`."""
    columns, rows = _rows(records)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(column) for column in columns)
        writer.writerow("" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells)
    replace(path, text.getvalue())


def _rows(records: Iterable[Record]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows. Columns that only some rows have (task options) still stand beside their like."""
    parts = [_parts(record) for record in records]
    columns = list(dict.fromkeys(key for group in zip(*parts, strict=True) for part in group for key in part))
    filled = ({key: value for part in row for key, value in part.items() if value is not None} for row in parts)
    return columns, list(filled)


def _parts(record: Record) -> list[dict[str, Any]]:
    """A record's row, in groups of columns."""
    arch, task, optim, train = (dict(record.config.get(key) or {}) for key in ("arch", "task", "optim", "train"))
    for section, key, before in YOUNGER:  # a record of before there was a choice
        part = {"arch": arch, "train": train}[section]
        if part:
            part.setdefault(key, before)
    stack = _stack_text(arch.pop("stack", None))
    return [
        {"run_id": record.run_id, "sweep": record.sweep, "status": record.status},
        {"arch": arch.pop("name", None) or stack, "stack": stack, "task": task.pop("name", None)},
        {f"task.{key}": _text(value) for key, value in task.items()},
        {"lr": optim.pop("lr", None), "weight_decay": optim.pop("weight_decay", None)},
        {"seed": record.config.get("seed")},
        dict(record.metrics),
        _at_the_end(record.curve) if train.get("report", "last") != "last" else {},
        {key: record.cost.get(key) for key in COST},
        {"steps": record.steps, "seconds": record.seconds, "setup_seconds": record.setup_seconds},
        {
            f"{name}.{key}": _text(value)
            for name, section in (("arch", arch), ("optim", optim), ("train", train))
            for key, value in section.items()
        },
        {
            "plugins": _text(record.config.get("plugins") or None),
            "device": record.device,
            "mode": record.config.get("mode"),
        },
        {f"versions.{key}": value for key, value in record.versions.items()},
        {"git_commit": record.git_commit, "started": record.started},
        {"failure": record.failure, "error": record.last_error},
    ]


def _at_the_end(curve: list[dict[str, float]]) -> dict[str, float]:
    """What the last evaluation measured, of a run that reports another one."""
    return {f"last_{key}": value for key, value in curve[-1].items() if key != "step"} if curve else {}


def _text(value: Any) -> Any:
    """A cell: lists and mappings as JSON."""
    return dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _stack_text(stack: Any) -> Any:
    """A stack as `arch.stack=` takes it: names joined by '-', JSON where a layer has options."""
    plain = isinstance(stack, (list, tuple)) and stack and all(isinstance(spec, str) for spec in stack)
    return "-".join(stack) if plain else _text(stack)
