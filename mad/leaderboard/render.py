"""The leaderboard for a terminal, as CSV and as Markdown."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mad.leaderboard.anchors import Anchor, Anchors
from mad.leaderboard.build import task_columns
from mad.records import save

WIDE = 200  # columns of text where nobody said how many there are
NAME = 14  # columns that a name needs at least
LESS = ("mean (valid-selected)", "ok", "settings", "win rate", "params", "FLOPs", "state size")  # left out first


def show(
    board: pd.DataFrame, console: Console | None = None, title: str = "Leaderboard", anchors: Anchors | None = None
) -> None:
    """Print `board` (see `build`) to the terminal, and what was published (see `anchors.match`)."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDE, force_terminal=False)
    cells = _with_published(_cells(board), board, anchors)
    console.print(_that_fits(cells, escape(title), _caption(board, anchors), console))


def _that_fits(cells: pd.DataFrame, title: str, caption: str | None, console: Console) -> Table:
    """On a narrow terminal heads stand word below word, names are folded, and what matters less is left out: numbers
    that are folded cannot be read. Where that does not do either, all the rest is folded."""
    table = _table(cells, title, caption)
    less, said = [column for column in LESS if column in cells], caption
    for number in range(len(less) + 1):
        if _fits(table, console):
            return table
        left_out = f"not shown, as the terminal is narrow: {', '.join(less[:number])}" if number else None
        said = "; ".join(filter(None, (caption, left_out))) or None
        table = _table(cells.drop(columns=less[:number]), title, said, narrow=True)
    return table if _fits(table, console) else _table(cells.drop(columns=less), title, said, narrow=True, fold=True)


def _table(cells: pd.DataFrame, title: str, caption: str | None, narrow: bool = False, fold: bool = False) -> Table:
    table = Table(title=title, caption=None if caption is None else escape(caption))
    for column in cells:
        head = str(column).replace(" ", "\n") if narrow else str(column)
        least = max(map(len, [*head.split("\n"), *cells[column]]))
        if column == "arch" and narrow:
            least = min(NAME, least)
        justify = "left" if column == "arch" else "right"
        table.add_column(escape(head), justify=justify, overflow="fold", min_width=None if fold else least)
    for row in cells.itertuples(index=False):
        table.add_row(*map(escape, row))
    return table


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update(max_width=10 * WIDE)).minimum <= console.width


def markdown(board: pd.DataFrame, anchors: Anchors | None = None) -> str:
    """`board` as a Markdown table, ended by a newline."""
    cells = _with_published(_cells(board), board, anchors)
    rule = ["---" if column == "arch" else "---:" for column in cells]
    rows = [list(map(_in_a_cell, row)) for row in (map(str, cells.columns), rule, *cells.values.tolist())]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    caption = _caption(board, anchors)
    return "\n".join([*lines, *(["", caption] if caption else [])]) + "\n"


def _in_a_cell(text: str) -> str:
    """On one line, and the table's own sign escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def write_markdown(board: pd.DataFrame, path: str | Path, anchors: Anchors | None = None) -> None:
    save(path, markdown(board, anchors))


def write_csv(board: pd.DataFrame, path: str | Path) -> None:
    """All columns and digits."""
    save(path, board.to_csv(index=False))


def _cells(board: Any) -> pd.DataFrame:
    """Texts in the order of the board; a score with its spread, counts in one column; columns without a value left
    out."""
    texts = pd.DataFrame(
        {"#": board["rank"].map(lambda rank: "" if pd.isna(rank) else str(rank)), "arch": board["arch"]}
    )
    none = pd.Series(float("nan"), board.index)
    for column in ("mean", *task_columns(board)):
        texts[column.replace("_", " ")] = _scores(board[column], board[f"{column}_std"])
        for more, head in (("mean_valid_selected", "mean (valid-selected)"), ("win_rate", "win rate")):
            if column == "mean" and board[more].notna().any():
                texts[head] = _scores(board[more], none)
    for column, head in (("params", "params"), ("flops", "FLOPs"), ("state_size", "state size")):
        if column in board:
            texts[head] = board[column].map(amount)
    texts["settings"] = [f"{d}/{t}" for d, t in zip(board["settings_done"], board["settings_total"], strict=True)]
    for column in ("ok", "diverged", "failed"):
        if board[column].any():
            texts[column] = board[column].astype(str)
    return texts


def _with_published(cells: pd.DataFrame, board: Any, anchors: Anchors | None) -> pd.DataFrame:
    """A row of published scores below each architecture that has any, ours minus theirs in parentheses; at the end
    those of other architectures."""
    if anchors is None:
        return cells
    rows = []
    for (_, texts), (_, ours) in zip(cells.iterrows(), board.iterrows(), strict=True):
        rows.append(dict(texts))
        anchor = anchors.beside(ours["arch"])
        if anchor:
            rows.append(_published(anchor, board, ours))
    rows += [_published(anchor, board, {}) for anchor in anchors.alone]
    return pd.DataFrame(rows, columns=cells.columns).fillna("")


def _published(anchor: Anchor, board: Any, ours: Any) -> dict[str, str]:
    texts = {"arch": f"published: {anchor.name}"}
    for column in ("mean", *task_columns(board)):
        if column in anchor.values:
            texts[column.replace("_", " ")] = published_score(anchor.values[column], ours.get(column))
    for column, head in (("params", "params"), ("flops", "FLOPs"), ("state_size", "state size")):
        texts[head] = amount(anchor.values.get(column, float("nan")))
    return texts


def published_score(theirs: float, ours: float | None) -> str:
    """'0.788 (+0.012)': published, and ours minus it."""
    return f"{theirs:.3f}" + ("" if ours is None or pd.isna(ours) else f" ({ours - theirs:+.3f})")


def _caption(board: Any, anchors: Anchors | None = None) -> str | None:
    incomplete = (board["settings_done"] < board["settings_total"]).sum()
    parts = [f"{incomplete} without a rank: not all settings have a result"] if incomplete else []
    if anchors:
        parts.append("published scores: in parentheses ours minus theirs")
        if anchors.left_out:
            parts.append(f"columns of theirs that are not on this board: {', '.join(anchors.left_out)}")
    return "; ".join(parts) or None


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
