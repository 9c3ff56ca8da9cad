"""Tables of runs from results folders and CSV files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mad.config import YOUNGER
from mad.leaderboard.build import check_named
from mad.records import DONE, RUN_ID, Record, Store, read_csv
from mad.records import table as table_of

TEXT = ("run_id", "arch", "task", "stack", "status")  # words, whatever they look like


def read(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The runs of all `paths`, one row each; a run that is in several is taken from the first that has its result.

    Args:
        paths: results folders (their records are read, so a sweep may still be under way) or CSV files.

    Raises:
        ValueError: a path that does not exist, holds no runs, or some without an architecture or a task.
    """
    return load(paths)[0]


def load(paths: Sequence[str | Path]) -> tuple[pd.DataFrame, list[Record]]:
    """What `read` gives, and the records of those paths that are results folders, which hold more than a row can."""
    if not paths:
        raise ValueError("no tables given; expected results folders or CSV files, for instance results/quickstart")
    found = [_read(Path(path)) for path in paths]
    tables = [table for table, _ in found]
    table = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
    if "run_id" in table:
        ours = table["run_id"].astype(str).str.fullmatch(RUN_ID)  # others' numbers begin anew in every table
        failed: Any = table["status"].eq("failed") if "status" in table else pd.Series(False, table.index)
        again = table["run_id"].loc[failed.sort_values(kind="stable").index].duplicated()
        table = table.loc[~(ours & again)]
    of_run: dict[str, Record] = {}
    for record in (record for _, records in found for record in records):
        known = of_run.get(record.run_id)
        if known is None or (known.status not in DONE and record.status in DONE):
            of_run[record.run_id] = record
    return table.reset_index(drop=True), list(of_run.values())


def _read(path: Path) -> tuple[pd.DataFrame, list[Record]]:
    records: list[Record] = []
    store = Store(path) if path.is_dir() else None
    if store is not None and store.exists():
        records = store.records()
        table = table_of(records)
    else:
        file = path / "results.csv" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{file} does not exist; expected a results folder or a CSV file of runs")
        try:
            table = read_csv(file, TEXT.__contains__)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not a CSV file of runs: {str(error).strip()}") from error
        check_named(table, str(file))
        table = _filled(table)
    if table.empty:
        raise ValueError(f"{path} holds no runs yet")
    return table, records


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    """A results.csv of ours with the columns that its mad did not know yet, as a table of its records would have them:
    else a model would be two."""
    if "run_id" not in table or not any(str(column).startswith("arch.") for column in table):
        return table
    ours: Any = table["run_id"].astype(str).str.fullmatch(RUN_ID)
    for section, key, before in YOUNGER:
        if before is not None:
            column: Any = table.get(f"{section}.{key}", pd.Series(None, table.index, dtype=object))
            table = table.assign(**{f"{section}.{key}": column.mask(ours & column.isna(), before)})
    return table
