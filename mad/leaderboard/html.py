"""The leaderboard as one HTML file that needs nothing else: `page.html`, `page.css` and `page.js`, and the board.

The table is in the file as HTML, and can be read without scripts. What stands behind a row is packed (see `pack`) and
drawn by the script when the row is opened. Whatever comes from tables is escaped, and beyond that the page's security
policy lets its own script run and nothing else, and nothing be loaded.
"""

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from mad.leaderboard.anchors import Anchor, Anchors
from mad.leaderboard.build import task_columns
from mad.leaderboard.details import Details
from mad.leaderboard.pack import pack
from mad.leaderboard.render import amount
from mad.records import save

FOLDER = Path(__file__).parent
BYTES = 298_000  # of a page of up to 100 rows; of longer ones that share a row
LONG = 25  # rows beyond which the table scrolls below its head
SCORES = ("mean", "score", "share")  # kinds of columns
CURVES = ((24, None), (16, None), (12, None), (16, 6), (16, 3), (12, 2), (12, 1), (0, 0))  # points, and how many a task


@dataclass(frozen=True)
class Column:
    """A column of the board on the page. `kind`: rank | name | mean | score | share | amount | settings | count."""

    key: str
    head: str
    kind: str
    about: str  # said of the head


def write_html(
    board: pd.DataFrame,
    path: str | Path,
    details: Details | None = None,
    anchors: Anchors | None = None,
    title: str = "Leaderboard",
) -> None:
    """Write `page` to a file."""
    save(path, page(board, details, anchors, title))


def page(
    board: pd.DataFrame, details: Details | None = None, anchors: Anchors | None = None, title: str = "Leaderboard"
) -> str:
    """`board` (see `build`) as an HTML page, with what stands behind its rows and what was published.

    It has at most BYTES a hundred rows: curves get fewer points, then there are fewer, and at last the details go.
    """
    columns = _columns(board, details)
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    fields = {
        "title": html.escape(title),
        "style": style,
        "script": script,
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "summary": html.escape(_summary(board, details)),
        "caption": html.escape(_caption(details, anchors)),
        "head": "\n".join(_head(board, column, anchors) for column in columns),
        "rows": "\n".join(_rows(board, columns, anchors)),
        "scroll": "scroll long" if len(board) > LONG else "scroll",
        "foot": html.escape(_foot(details)),
    }
    template = Template((FOLDER / "page.html").read_text(encoding="utf-8"))
    room = BYTES * max(1.0, len(board) / 100)
    text = ""
    for curves in (*CURVES, None):
        packed = pack(details, board["arch"], *curves) if details and curves else None
        # "<" would end the element that holds the data
        data = json.dumps(packed, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
        text = template.substitute(fields, data=data)
        if len(text.encode()) <= room:
            break
    return text


def _columns(board: Any, details: Details | None) -> list[Column]:
    score = f"by {details.score.replace('_', ' ')}" if details else "over the settings"
    some = [
        Column("rank", "#", "rank", "Rank of those that have a result for every setting"),
        Column("arch", "architecture", "name", "Architecture"),
        Column("mean", "mean", "mean", f"Mean over the tasks, {score}; with the standard deviation over seeds"),
        Column("mean_valid_selected", "valid-selected mean", "share", "The same, points selected on validation data"),
        Column("win_rate", "win rate", "share", "Share of the other architectures beaten, over settings, ties half"),
        *(Column(t, t.replace("_", " "), "score", f"Mean over the settings of {t}") for t in task_columns(board)),
        Column("params", "params", "amount", "Parameters, of the largest setting"),
        Column("flops", "FLOPs", "amount", "FLOPs of a forward pass of one sequence, of the largest setting"),
        Column("state_size", "state size", "amount", "Recurrent state, elements a sequence, of the largest setting"),
        Column("settings_done", "settings", "settings", "Settings that have a result, of all"),
        *(Column(s, s, "count", f"Number of runs: {s}") for s in ("ok", "diverged", "failed")),
    ]
    return [c for c in some if c.key in board and (c.kind in ("name", "mean") or _told(board[c.key], c.kind))]


def _told(values: Any, kind: str) -> bool:
    """Whether a column has anything to say."""
    return bool((values != 0).any() if kind == "count" else values.notna().any())


def _head(board: Any, column: Column, anchors: Anchors | None) -> str:
    """data-e, data-p: the columns of spread and published score that the CSV file has besides."""
    more = ""
    if column.key == "settings_done":
        more += ' data-e="settings_total"'
    elif f"{column.key}_std" in board and board[f"{column.key}_std"].notna().any():
        more += f' data-e="{html.escape(column.key)}_std"'
    if anchors and any(column.key in anchor.values and anchor.beside for anchor in anchors.rows):
        more += f' data-p="{html.escape(column.key)}_published"'
    key, about = html.escape(column.key), html.escape(column.about)
    return f'<th scope="col" class="{column.kind}" data-k="{key}"{more} title="{about}">{html.escape(column.head)}</th>'


def _rows(board: Any, columns: list[Column], anchors: Anchors | None) -> list[str]:
    ranges = {c.key: _range(board[c.key]) for c in columns if c.kind in SCORES}
    rows = []
    for number, (_, row) in enumerate(board.iterrows()):
        anchor = anchors.beside(row["arch"]) if anchors else None
        cells = "".join(_cell(column, row, anchor, ranges) for column in columns)
        rows.append(f"<tr data-i={number}>{cells}</tr>")
    for anchor in anchors.alone if anchors else ():
        values = {"arch": anchor.name} | anchor.values
        rows.append(f'<tr class="theirs">{"".join(_cell(column, values, None, ranges) for column in columns)}</tr>')
    return rows


def _cell(column: Column, row: Any, anchor: Anchor | None, ranges: dict[str, tuple[float, float]]) -> str:
    """data-v, data-e, data-p: value, spread and published value, in more digits than are shown."""
    value = row.get(column.key)
    if column.kind == "name":
        beside = f"<small>published: {html.escape(anchor.name)}</small>" if anchor else ""
        note = "" if isinstance(row, pd.Series) else "<small>published</small>"
        name = html.escape(str(value)).replace("_", "_<wbr>")
        return f'<th scope="row"><span>{name}</span>{beside}{note}</th>'
    theirs = anchor.values.get(column.key) if anchor and column.kind in ("mean", "score") else None
    more = f" data-p={theirs:.5g}" if theirs is not None else ""
    beside = ""
    if theirs is not None:
        beside = f"<small>{theirs:.3f}{f' <b>{value - theirs:+.3f}</b>' if pd.notna(value) else ''}</small>"
    if value is None or pd.isna(value):
        return f"<td{more}>{beside}</td>"
    if column.kind in SCORES:
        spread = row.get(f"{column.key}_std")
        known = spread is not None and pd.notna(spread)
        low, high = ranges[column.key]
        share = min(1.0, max(0.0, (value - low) / ((high - low) or 1)))
        more = f" data-v={value:.5g}{f' data-e={spread:.5g}' if known else ''}{more}"
        heat = f' style="--s:{share:.2f}"' if column.kind != "share" else ""
        kind = {"score": " class=s", "mean": " class=m"}.get(column.kind, "")
        return f"<td{kind}{heat}{more}>{value:.3f}{f' <i>± {spread:.3f}</i>' if known else ''}{beside}</td>"
    if column.kind == "settings":
        total = row["settings_total"]
        return f"<td data-v={value} data-e={total}>{value}/{total}</td>"
    text = amount(value) if column.kind == "amount" else f"{value:.0f}"
    return f"<td data-v={value:.15g}>{text}</td>"


def _range(values: Any) -> tuple[float, float]:
    """What the palest and the fullest colour stand for."""
    low, high = values.min(), values.max()
    return (0.0, 1.0) if pd.isna(low) or (low >= 0 and high <= 1) else (float(low), float(high))


def _summary(board: Any, details: Details | None) -> str:
    """'5 architectures, 3 settings of 3 tasks, 15 runs, scored by accuracy'."""
    counts = [(len(board), "architecture"), (int(board["settings_total"].iloc[0]), "setting")]
    text = ", ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts)
    tasks = len(task_columns(board))
    text += f" of {tasks} task{'s' * (tasks != 1)}"
    if details:
        text += f", {details.runs} run{'s' * (details.runs != 1)}, scored by {details.score.replace('_', ' ')}"
    return text


def _caption(details: Details | None, anchors: Anchors | None) -> str:
    seeds = bool(details) and any(row.spread for row in details.rows.values())
    parts = ["A score is the best of the optimiser grid, averaged over seeds and over the settings of a task."]
    parts += ["After ±: the standard deviation over seeds."] if seeds else []
    if anchors:
        parts.append("Below ours, smaller: published scores, and ours minus theirs.")
        parts += [f"Published, but not on this board: {', '.join(anchors.left_out)}."] if anchors.left_out else []
    return " ".join(parts)


def _foot(details: Details | None) -> str:
    """Where the runs were, and of what versions."""
    if not details:
        return ""
    heads = {"device": "device", "versions.mad": "mad", "versions.torch": "torch"}
    heads |= {"versions.plugins": "plugins", "git_commit": "commit"}
    return ". ".join(f"{heads[key]}: {', '.join(seen)}" for key, seen in details.provenance.items() if seen)
