"""The leaderboard for a terminal, as CSV and as Markdown."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

WIDE = 200  # columns of text where nobody said how many there are


def show(board: pd.DataFrame, console: Console | None = None, title: str = "Leaderboard") -> None:
    """Print `board` (see `build`) to the terminal."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDE, force_terminal=False)
    cells = _cells(board)
    table = Table(title=title, caption=_caption(board))
    for column in cells:
        table.add_column(str(column), justify="left" if column == "arch" else "right", overflow="fold")
    for row in cells.itertuples(index=False):
        table.add_row(*row)
    console.print(table)


def markdown(board: pd.DataFrame) -> str:
    """`board` as a Markdown table, ended by a newline."""
    cells = _cells(board)
    rule = ["---" if column == "arch" else "---:" for column in cells]
    rows = [list(cells.columns), rule, *([cell.replace("|", "\\|") for cell in row] for row in cells.values.tolist())]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    caption = _caption(board)
    return "\n".join([*lines, *(["", caption] if caption else [])]) + "\n"


def write_markdown(board: pd.DataFrame, path: str | Path) -> None:
    Path(path).write_text(markdown(board), encoding="utf-8")


def write_csv(board: pd.DataFrame, path: str | Path) -> None:
    """All columns and digits."""
    board.to_csv(path, index=False)


def _cells(board: Any) -> pd.DataFrame:
    """Texts in the order of the board; a score with its spread, counts in one column; columns without a value left
    out."""
    texts = pd.DataFrame(
        {"#": board["rank"].map(lambda rank: "" if pd.isna(rank) else str(rank)), "arch": board["arch"]}
    )
    last = list(board.columns).index("mean_valid_selected")
    tasks = [c for c in board.columns[last + 1 :] if f"{c}_std" in board]
    for column in ("mean", *tasks):
        texts[column.replace("_", " ")] = _scores(board[column], board[f"{column}_std"])
        if column == "mean" and board["mean_valid_selected"].notna().any():
            none = pd.Series(float("nan"), board.index)
            texts["mean (valid-selected)"] = _scores(board["mean_valid_selected"], none)
    for column, head in (("params", "params"), ("flops", "FLOPs"), ("state_size", "state size")):
        if column in board:
            texts[head] = board[column].map(amount)
    texts["settings"] = [f"{d}/{t}" for d, t in zip(board["settings_done"], board["settings_total"], strict=True)]
    for column in ("ok", "diverged", "failed"):
        if board[column].any():
            texts[column] = board[column].astype(str)
    return texts


def _caption(board: Any) -> str | None:
    incomplete = (board["settings_done"] < board["settings_total"]).sum()
    return f"{incomplete} without a rank: not all settings have a result" if incomplete else None


def _scores(scores: Any, spreads: Any) -> list[str]:
    return [
        "" if pd.isna(score) else f"{score:.3f}" + ("" if pd.isna(spread) else f" ± {spread:.3f}")
        for score, spread in zip(scores, spreads, strict=True)
    ]


def amount(number: float) -> str:
    """'131.6k', '2.4M', '1.3G'."""
    if pd.isna(number):
        return ""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
