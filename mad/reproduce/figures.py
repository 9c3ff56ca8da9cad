"""The published figures with ours in them: theirs hollow and dashed, ours filled; pale where a row is not all there.

A model keeps one colour throughout.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from mad.figures import COLORS, MARKERS, PANEL, STYLE, log_axes, save
from mad.reproduce.compare import Comparison, ranks
from mad.reproduce.layout import MEAN

PALE = 0.4
SHORT = {
    "in_context_recall": "recall", "fuzzy_in_context_recall": "fuzzy\nrecall", "noisy_in_context_recall":
    "noisy\nrecall", "selective_copying": "copying", "compression": "compres-\nsion", "memorization": "memori-\nzation",
}  # fmt: skip

Looks = dict[str, tuple[str, str]]  # model -> colour, marker


def draw(comparison: Comparison) -> Figure:
    """The figure of a comparison."""
    function = {"mad_table": _mad_table, "based_figure2": _based, "zoology_figure2": _zoology}[comparison.name]
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        return function(comparison.rows)


def write(comparison: Comparison, path: str | Path) -> None:
    """Write `draw` to a file, in one piece, in the format of its suffix."""
    save(draw(comparison), path)


def _looks(rows: Any) -> Looks:
    """Colours and markers of the models; where there are more models than colours, those come again with others."""
    models = enumerate(rows["model"].unique())
    return {name: (COLORS[i % len(COLORS)], MARKERS[(i + i // len(COLORS)) % len(MARKERS)]) for i, name in models}


def _lines(axes: Axes, rows: Any, looks: Looks, x: str, our_x: str) -> None:
    """Accuracy of each model against a size, theirs and ours."""
    for model, own in rows.groupby("model", sort=False):
        color, marker = looks[model]
        theirs = own[own["published"].notna()].sort_values(x)
        axes.plot(theirs[x], theirs["published"], marker=marker, color=color, mfc="white", ls="--", lw=1, zorder=2)
        ours = own[own["ours"].notna()].sort_values(our_x)
        axes.plot(ours[our_x], ours["ours"], color=color, lw=1.4, alpha=PALE if _partial(ours).any() else 1, zorder=3)
        for part, alpha in ((_partial(ours), PALE), (~_partial(ours), 1.0)):
            x_of, y_of = (ours.loc[part, column] for column in (our_x, "ours"))
            axes.plot(x_of, y_of, marker, color=color, ms=5.5, alpha=alpha, mew=0, zorder=4)


def _partial(rows: Any) -> Any:
    return rows["verdict"] == "partial"


def _legend(figure: Figure, rows: Any, looks: Looks, line: bool = True) -> None:
    """Beside the panels: what is hollow, filled and pale, and the models."""
    handles = [
        Line2D([], [], color="0.2", marker="o", mfc="white", ls="--" if line else "", lw=1, label="published"),
        Line2D([], [], color="0.2", marker="o", ls="-" if line else "", label="ours"),
    ]
    if _partial(rows).any():
        handles.append(Line2D([], [], color="0.2", marker="o", mew=0, alpha=PALE, ls="", label="ours, partial"))
    for model, (color, marker) in looks.items():
        handles.append(Line2D([], [], color=color, marker=marker, ls="", label=model.replace("_", " ")))
    figure.legend(handles=handles, loc="outside right center")


def _mad_table(rows: Any) -> Figure:
    """Scores by task, and the mean against perplexity, with the rank correlation of either."""
    rows = rows[rows["published"].notna()]
    looks = _looks(rows)
    figure = Figure(figsize=(2.75 * PANEL, 1.1 * PANEL))
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    tasks = [task for task in SHORT if task in set(rows["task"])]
    for i, (model, own) in enumerate(rows.groupby("model", sort=False)):
        color, marker = looks[model]
        own = own.set_index("task")
        at = np.arange(len(tasks)) + 0.15 * (i - (len(looks) - 1) / 2)
        _pairs(left, at, own.loc[tasks], "ours", color, marker)
        _perplexity(right, own.loc[MEAN], color, marker)
    left.set_xticks(range(len(tasks)), [SHORT[task] for task in tasks])
    left.xaxis.grid(False)
    left.set_ylabel("score")
    left.set_ylim(-0.04, 1.04)
    right.set_xlabel("MAD score")
    right.set_ylabel("compute-optimal perplexity (published)")
    right.margins(0.1)
    right.set_title("\n".join(filter(None, (_spearman(rows, "published"), _spearman(rows, "ours")))), loc="left")
    _legend(figure, rows, looks, line=False)
    return figure


def _pairs(axes: Axes, at: Any, rows: Any, column: str, color: str, marker: str) -> None:
    for x, row in zip(at, rows.to_dict("records"), strict=True):
        axes.plot([x, x], [row["published"], row[column]], color=color, lw=0.7, alpha=0.6, zorder=1)
        axes.plot(x, row["published"], marker, color=color, mfc="white", zorder=2)
        alpha = PALE if row["verdict"] == "partial" else 1
        axes.plot(x, row[column], marker, color=color, ms=5.5, mew=0, alpha=alpha, zorder=3)


def _perplexity(axes: Axes, row: Any, color: str, marker: str) -> None:
    axes.plot([row["published"], row["ours"]], [row["perplexity"]] * 2, color=color, lw=0.7, alpha=0.6, zorder=1)
    axes.plot(row["published"], row["perplexity"], marker, color=color, mfc="white", zorder=2)
    alpha = PALE if row["verdict"] == "partial" else 1
    axes.plot(row["ours"], row["perplexity"], marker, color=color, ms=5.5, mew=0, alpha=alpha, zorder=3)


def _spearman(rows: Any, column: str) -> str:
    """'ours: Spearman -0.90 (n = 5)'; '' where there is no order."""
    found = ranks(rows, column)
    return f"{column}: Spearman {found.spearman:.2f} (n = {found.n})" if found else ""


def _based(rows: Any) -> Figure:
    """Accuracy against the bytes of the state."""
    rows = rows.assign(ours_bytes=rows["ours_bytes"] if "ours_bytes" in rows else np.nan)
    looks = _looks(rows)
    figure = Figure(figsize=(2.2 * PANEL, 1.35 * PANEL))
    axes = figure.subplots()
    _lines(axes, rows, looks, "state_bytes", "ours_bytes")
    axes.set_ylabel("accuracy, mean of seven lengths")
    axes.set_ylim(-0.04, 1.04)
    log_axes(axes, "recurrent state at 1,024 tokens (bytes)")
    _legend(figure, rows, looks)
    return figure


def _zoology(rows: Any) -> Figure:
    """Accuracy against width, a panel a length."""
    looks = _looks(rows)
    lengths = rows[["seq_len", "num_kv"]].drop_duplicates().sort_values("seq_len").itertuples(index=False, name=None)
    sizes = list(lengths)
    figure = Figure(figsize=(0.75 * PANEL * len(sizes) + 1.2, 0.95 * PANEL))
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False).ravel().tolist()
    for axes, (length, pairs) in zip(panels, sizes, strict=True):
        own = rows[(rows["seq_len"] == length) & (rows["num_kv"] == pairs)]
        _lines(axes, own, looks, "d_model", "d_model")
        axes.set_title(f"{length} tokens, {pairs} pairs")
        axes.set_xscale("log", base=2)
        widths = sorted(set(own["d_model"]))
        axes.xaxis.set_major_locator(FixedLocator(widths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([str(width) for width in widths])
        axes.set_xlabel("width")
    panels[0].set_ylabel("accuracy")
    panels[0].set_ylim(-0.04, 1.04)
    _legend(figure, rows, looks)
    return figure
