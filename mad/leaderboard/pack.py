"""Details made small, for the page: a protocol of 396 runs and a hundred architectures are 40,000 scores and commands.

Scores are two characters each, exact to three decimals where all lie from 0 to 4, else to one part in 4,000 of their
range; curves are resampled, and of all commands each different part is there once. page.js has the way back.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mad.leaderboard import command
from mad.leaderboard.details import Details, Row

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
LEVELS = 4000  # of a score
CODES = {"diverged": 4093, "failed": 4094, "missing": 4095}  # in place of one


def pack(details: Details, archs: Iterable[str], points: int, curves: int | None = None) -> dict[str, Any]:
    """What the page reads: rows in the order of `archs`, with `points` of each curve and at most `curves` a task.

    Commands: `settings`, `grid` and `rows` have numbers of `parts`; `other` has all five of a cell that has others, or
    none where no record says its command.
    """
    rows = details.rows.values()
    low, step = _scale([s for row in rows for s in (*row.scores.values(), *row.best) if not isinstance(s, str)])
    heights = [float(y) for row in rows for _, ys in row.curves.values() for y in (ys.min(), ys.max())]
    bottom, top = (0.0, 1.0) if all(0 <= y <= 1 for y in heights) else (min(heights), max(heights))
    longest = max((int(steps[-1]) for row in rows for steps, _ in row.curves.values()), default=1)
    unit = longest // 64**3 + 1
    measured = max((len(steps) for row in rows for steps, _ in row.curves.values()), default=0)
    points = min(points, measured)
    drawn = _spread(details, curves)
    parts: dict[str, int] = {}

    def number(texts: dict[str, str] | None, *keys: str) -> list[int]:
        return [parts.setdefault(texts[key], len(parts)) for key in keys] if texts else []

    def code(score: float | str) -> str:
        level = CODES[score] if isinstance(score, str) else round((score - low) / step)
        return DIGITS[level // 64] + DIGITS[level % 64]

    def packed(row: Row) -> dict[str, Any]:
        settings, grid = (sorted({cell[axis] for cell in row.scores}) for axis in (0, 1))
        cells = [(setting, point) for setting in settings for point in grid]
        found: dict[str, Any] = {
            "stack": row.stack,
            "about": parts.setdefault(row.about, len(parts)),
            "parts": number(row.parts, "arch", "seed"),
            "scores": "".join(code(row.scores.get(cell, "missing")) for cell in cells),
        }
        if points and row.curves:
            none = "." * (4 + points)
            found["curves"] = "".join(
                _curve(*row.curves[setting], points, unit, bottom, top) if setting in row.curves else none
                for setting in settings
                if setting in drawn
            )
        if row.spread:
            found["best"] = "".join(map(code, row.best))
        if len(settings) < len(details.settings):
            found["settings"] = settings
        if len(grid) < len(details.grid):
            found["grid"] = grid
        other = {}
        for cell, own in row.commands.items() if row.parts else ():
            usual = [details.settings[cell[0]]["parts"], row.parts, details.grid[cell[1]]["parts"]]
            if own != {key: texts[key] for texts in usual if texts for key in texts}:
                other[cells.index(cell)] = number(own, *command.PARTS)
        return found | ({"other": other} if other else {})

    return {
        "score": details.score,
        "digits": DIGITS,
        "codes": CODES,
        "scale": [low, step],
        "curve": [points, unit, bottom, top],
        "drawn": drawn if len(drawn) < len(details.settings) else None,
        "tasks": details.tasks,
        "settings": [[s["task"], s["label"], *number(s["parts"], "task", "train")] for s in details.settings],
        "grid": [[g["label"], *number(g["parts"], "optim")] for g in details.grid],
        "program": command.PROGRAM,
        "rows": [packed(details.rows[arch]) for arch in archs],
        "parts": list(parts),
    }


def _spread(details: Details, most: int | None) -> list[int]:
    """The settings with a curve: of a task with more than `most`, some from the first to the last."""
    chosen = []
    for task in range(len(details.tasks)):
        of = [number for number, setting in enumerate(details.settings) if setting["task"] == task]
        even = np.linspace(0, len(of) - 1, min(len(of), len(of) if most is None else most))
        chosen += [of[round(place)] for place in even]
    return chosen


def _curve(steps: Any, scores: Any, points: int, unit: int, low: float, high: float) -> str:
    """Last step (three digits, in units), first step (one, as a share of it), scores at even distances between."""
    last, first = round(steps[-1] / unit), round(63 * steps[0] / max(steps[-1], 1))
    even = np.interp(np.linspace(steps[0], steps[-1], points), steps, scores)
    levels = np.rint((even - low) / ((high - low) or 1) * 63).astype(int)
    return "".join(DIGITS[i] for i in (last // 4096, last // 64 % 64, last % 64, first, *levels))


def _scale(scores: list[float]) -> tuple[float, float]:
    """Low and step of the codes: thousandths wherever they reach."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return (0, 0.001) if low >= 0 and high <= LEVELS / 1000 else (low, (high - low) / LEVELS or 1)
