"""Tables of runs from results folders and CSV files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mad.records import Store


def read(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The runs of all `paths`, one row each; a run that is in several is taken from the first.

    Args:
        paths: results folders (their records are read, so a sweep may still be under way) or CSV files.

    Raises:
        ValueError: a path that does not exist, or holds no runs.
    """
    tables = [_read(Path(path)) for path in paths]
    if not tables:
        raise ValueError("no tables given; expected results folders or CSV files, for instance results/quickstart")
    table = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
    if "run_id" in table:
        table = table.loc[~(table["run_id"].notna() & table["run_id"].duplicated())]
    return table.reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    if (path / "store.json").exists():
        table = Store(path).table()
    else:
        file = path / "results.csv" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{file} does not exist; expected a results folder or a CSV file of runs")
        try:
            table = pd.read_csv(file, low_memory=False)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not a CSV file of runs: {error}") from error
    if table.empty:
        raise ValueError(f"{path} holds no runs yet")
    return table
