"""The leaderboard as a figure: score against state size and against FLOPs, for `--png FILE`.

The line is the Pareto front: no architecture left of a point on it scores as much. Architectures that lack settings are
not comparable, so they are grey and have no part in it. What was published is hollow: at our cost where it stands
beside a row of ours, at its own where the file has one, and not drawn where no cost is known.
"""

import itertools
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from mad.figures import COLORS, PANEL, STYLE, log_axes, save
from mad.leaderboard.anchors import Anchors

PANELS = {"state_size": "state size (elements a sequence)", "flops": "forward FLOPs a sequence"}
NAMED = 12  # points beyond which only those of the front are named, below the panel
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
OFFSETS = [(r * x, r * y) for r in (7, 12, 18, 26, 36, 48, 62, 78) for x, y in AROUND]  # of a name, in points
LETTER, LINE = 4.3, 9.0  # size of a letter in points

Point = tuple[str, float, float]  # a text, x, y


def write_figure(board: pd.DataFrame, path: str | Path, anchors: Anchors | None = None) -> None:
    """Write `draw` to a file, in one piece, in the format of its suffix."""
    save(draw(board, anchors), path)


def draw(board: pd.DataFrame, anchors: Anchors | None = None) -> Figure:
    """The mean of `board` (see `build`) against its costs; a cost of 0 is drawn at 1.

    Raises:
        ValueError: no row has both a mean and a cost.
    """
    ours: Any = board
    keys = [key for key in PANELS if key in ours and (ours[key].notna() & ours["mean"].notna()).any()]
    if not keys:
        raise ValueError("nothing to draw: no architecture has both a mean and one of state_size, flops")
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(2.2 * PANEL * len(keys) / 2 * 1.15, 1.15 * PANEL))
        panels = figure.subplots(1, len(keys), sharey=True, squeeze=False).ravel().tolist()
        named = [_panel(axes, ours, key, anchors) for axes, key in zip(panels, keys, strict=True)]
        panels[0].set_ylabel("mean score")
        panels[0].legend(loc="best")
        figure.draw_without_rendering()  # places are known from here on
        for axes, points in zip(panels, named, strict=True):
            _names(axes, points)
    return figure


def front(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Indices of the points that no other one equals or beats at no more cost, from the cheapest on."""
    order = np.lexsort((-score, cost))
    best = np.maximum.accumulate(np.r_[-np.inf, score[order]])[:-1]
    return order[score[order] > best]


def _panel(axes: Axes, board: Any, column: str, anchors: Anchors | None) -> list[Point]:
    """Draw one. Its points, with what is to be written beside them: names, or of many numbers, with a key below."""
    rows = board[board[column].notna() & board["mean"].notna()]
    complete = rows["rank"].notna().to_numpy()
    cost, score = np.maximum(rows[column].to_numpy(float), 1), rows["mean"].to_numpy(float)
    spread = rows["mean_std"].fillna(0).to_numpy(float)
    for kind, color, label in ((complete, COLORS[0], "architecture"), (~complete, "0.6", "settings missing")):
        if kind.any():
            axes.errorbar(
                cost[kind], score[kind], spread[kind], fmt="o", color=color, elinewidth=0.8, label=label, zorder=3
            )
    best = np.flatnonzero(complete)[front(cost[complete], score[complete])]
    label = "Pareto front" if len(best) else "_"  # none, none in the legend
    axes.step(cost[best], score[best], where="post", color=COLORS[1], lw=1, zorder=2, label=label)
    axes.scatter(cost[best], score[best], 26, color=COLORS[1], zorder=4)
    names = rows["arch"].astype(str).tolist()
    many = len(rows) > NAMED
    points = [(names[i], cost[i], score[i]) for i in (best if many else range(len(rows)))]
    if many:
        key = [f"{number}\N{NO-BREAK SPACE}{name}" for number, (name, _, _) in enumerate(points, 1)]
        points = [(str(number), x, y) for number, (_, x, y) in enumerate(points, 1)]
        axes.annotate(
            textwrap.fill("   ".join(key), 72), (0, 0), (0, -36), xycoords="axes fraction", textcoords="offset points",
            fontsize=7, va="top", annotation_clip=False, parse_math=False,
        )  # fmt: skip
    at = dict(zip(names, zip(cost, score, strict=True), strict=True))
    points += _published(axes, at, column, anchors)
    points += [("", x, y) for x, y in at.values()]  # no name, but not to be written upon
    axes.margins(0.12, 0.1)
    log_axes(axes, PANELS[column])
    return points


def _published(axes: Axes, at: dict[str, tuple[float, float]], column: str, anchors: Anchors | None) -> list[Point]:
    """Draw what was published: joined to ours, or by itself; the latter have names."""
    label, points = "published", []
    for anchor in anchors.rows if anchors else ():
        if "mean" not in anchor.values:
            continue
        mean, ours = anchor.values["mean"], [at[arch] for arch in anchor.beside if arch in at]
        alone = [max(anchor.values[c], 1) for c in (column,) if c in anchor.values and not ours]
        for x in [x for x, _ in ours] + alone:
            axes.plot(x, mean, "D", mfc="none", mec=COLORS[2], ms=5, zorder=5, label=label)
            points.append(("" if ours else anchor.name, x, mean))
            label = "_"  # once in the legend
        for x, y in ours:
            axes.plot([x, x], [y, mean], ":", color=COLORS[2], lw=1, zorder=1)
    return points


def _names(axes: Axes, points: list[Point]) -> None:
    """Write each name where it covers no point and no other name; where there is no such place, leave it out."""
    figure = axes.figure
    scale = figure.dpi / 72
    places = axes.transData.transform([(x, y) for _, x, y in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for line in axes.lines:  # the front
        corners = axes.transData.transform(np.asarray(line.get_xydata()))
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            taken += [Bbox.from_extents(x0, y0 - 1, x1, y0 + 1), Bbox.from_extents(x1 - 1, y0, x1 + 1, y1)]
    inside = axes.get_window_extent()
    legend = axes.get_legend()
    if legend:
        taken.append(legend.get_window_extent())
    for (name, x, y), (left, bottom) in zip(points, places, strict=True):
        width, height = LETTER * len(name) * scale, LINE * scale
        for dx, dy in OFFSETS if name else ():
            h, v = (
                ("left", "right", "center")[(dx < 0) + 2 * (dx == 0)],
                ("bottom", "top", "center")[(dy < 0) + 2 * (dy == 0)],
            )
            start = left + dx * scale - {"left": 0, "right": width, "center": width / 2}[h]
            low = bottom + dy * scale - {"bottom": 0, "top": height, "center": height / 2}[v]
            box = Bbox.from_bounds(start, low, width, height)
            if inside.contains(*box.min) and inside.contains(*box.max) and not box.count_overlaps(taken):
                taken.append(box)
                far = max(abs(dx), abs(dy)) > 9
                line = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 3} if far else None
                axes.annotate(
                    name, (x, y), (dx, dy), textcoords="offset points", fontsize=7, ha=h, va=v, arrowprops=line,
                    annotation_clip=False, parse_math=False, zorder=6,
                ).set_in_layout(False)  # fmt: skip
                break
