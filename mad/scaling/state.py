"""State-optimal scaling (Poli et al. 2024, arXiv 2403.17844): perplexity against the state of compute-optimal models.

At each (architecture, budget) the IsoFLOP vertex gives the compute-optimal loss, and the state size of a model of that
size: log P* = c_architecture + s log M*. Whether one slope serves all architectures is an F-test. The vertices are
estimates, so intervals come from runs resampled within each budget, through both stages.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mad.scaling.checks import MOST_FAILED, NoInteriorMinimum, NoInterval, NotFinite, Refused, resamples, warn
from mad.scaling.isoflop import (
    BUDGETS,
    SAME_BUDGET,
    Vertex,
    budgets,
    left_out,
    resample_vertices,
    vertex,
)
from mad.scaling.table import Frame, standard

FLOORS = 200  # that are tried
MOST_NATS = 700.0  # whose exponential is still a number


@dataclass(frozen=True)
class StateOptimalFit:
    """P* = exp(intercept of its class) M*^slope.

    Attributes:
        points: a row a (arch, seq_len, budget): compute, n, d, loss, perplexity, state_size at the vertex, and
            `frontier`: no other point has both less state and less perplexity.
        slope, interval: the common exponent, and 95 %: of the bootstrap where there was one, else of Student's t.
        intercepts: class -> ln P at M = 1. A class is an architecture at a sequence length.
        slopes: class -> its own exponent.
        f, p: the F statistic of class-specific against one slope, and its p value; NaN where there are too few points.
        floor: {"floor", "exponent", "error", "error_without"}: the same with P = F + c M^s a class, one F for all, and
            the error of ln P of the points at the largest budget, when predicted from the others, with and without the
            floor; None where there are too few points.
        samples: (bootstrap,) of the slope.
    """

    points: Frame
    slope: float
    interval: tuple[float, float]
    intercepts: dict[str, float]
    slopes: dict[str, float]
    f: float
    p: float
    floor: dict[str, float] | None
    samples: np.ndarray = field(default_factory=lambda: np.empty(0))

    def predict(self, name: str, state_size: Any) -> Any:
        """The perplexity of a class at a state size."""
        return np.exp(self.intercepts[name] + self.slope * np.log(np.asarray(state_size, dtype=float)))


def fit_state_optimal(
    table: Frame, *, bootstrap: int = 0, seed: int = 0, same_budget: float = SAME_BUDGET
) -> StateOptimalFit:
    """Fit perplexity against state size.

    Args:
        table: a row a run: arch, n, d, loss (nats), state_size, compute (6 n d where there is none), and seq_len where
            lengths differ; other names as in `mad.scaling.table`.
        bootstrap: resamples of the runs of each (arch, seq_len, budget).

    Raises:
        NoInteriorMinimum: fewer than three vertices. Refused: the state size is the same everywhere.
        ValueError: a column is missing. NotFinite: a state size that is missing or not positive.
    """
    resamples(bootstrap)
    runs = standard(table)
    if "state_size" not in runs:
        raise ValueError(f"a state-optimal fit needs the column state_size; the table has {', '.join(map(str, table))}")
    good = np.isfinite(runs["state_size"]) & (runs["state_size"] > 0)
    if not good.all():
        raise NotFinite(
            f"state_size must be positive in every row, in {int((~good).sum())} of {len(good)} it is not (architecture "
            f"{', '.join(sorted(runs['arch'][~good].unique()))}); a layer without state has no place in this law"
        )
    if (runs["loss"] > MOST_NATS).any():
        raise Refused(
            f"a loss of {runs['loss'].max():.4g} has no perplexity, exp(loss), that is a number; expected nats"
        )
    cells, points = [], []
    for name, group in _classes(runs):
        arrays = [group[key].to_numpy() for key in ("compute", "n", "d", "loss")]
        log_m = np.log(group["state_size"].to_numpy())
        every = [vertex(*arrays[:4], rows=rows) for rows in budgets(arrays[0], same_budget)]
        left_out(every, f" of {name}")
        for found in (v for v in every if v.reason is None):
            cells.append((arrays, found.rows, log_m))
            points.append(_point(name, group, found, log_m))
    if len(points) < BUDGETS:
        raise NoInteriorMinimum(
            f"a state-optimal fit needs {BUDGETS} (architecture, budget) pairs with a minimum inside, got {len(points)}"
        )
    frame = pd.DataFrame(points)
    x, y = np.log(frame["state_size"].to_numpy()), frame["loss"].to_numpy()
    classes, index = np.unique(frame["class"], return_inverse=True)
    if np.allclose(_within(x, index), 0):
        raise Refused("the state size is the same at every budget of each architecture: there is no slope to fit")
    slope, intercepts, rest = _common(x, y, index)
    error = np.sqrt(rest @ rest / max(1, len(x) - len(classes) - 1) / (_within(x, index) ** 2).sum())
    freedom = len(x) - len(classes) - 1
    width = stats.t.ppf(0.975, freedom) * error if freedom > 0 else np.inf
    interval, samples = (slope - width, slope + width), np.empty(0)
    if bootstrap:
        samples = _resampled(cells, index, bootstrap, np.random.default_rng(seed))
        failed = 1 - len(samples) / bootstrap
        interval = (np.nan, np.nan)
        if failed <= MOST_FAILED:
            interval = tuple(np.percentile(samples, [2.5, 97.5]).tolist())
        else:
            warn(
                NoInterval,
                f"no interval: {failed:.0%} of the resamples have fewer than {BUDGETS} points with a minimum inside; "
                "train more sizes at each budget",
            )
    slopes = {
        str(name): float(np.polyfit(x[index == i], y[index == i], 1)[0])
        for i, name in enumerate(classes) if len(np.unique(x[index == i])) > 1
    }  # fmt: skip
    f, p = _f_test(x, y, index)
    frame["frontier"] = _frontier(frame["state_size"].to_numpy(), y)
    named = dict(zip(map(str, classes), intercepts.tolist(), strict=True))
    return StateOptimalFit(frame, slope, interval, named, slopes, f, p, _floor(frame, index), samples)


def _classes(runs: Frame):
    """(name, rows) of each architecture at each sequence length."""
    lengths = runs["seq_len"].nunique() if "seq_len" in runs else 1
    if lengths < 2:
        yield from ((str(name), group) for name, group in runs.groupby("arch", sort=True))
        return
    for (name, length), group in runs.groupby(["arch", "seq_len"], sort=True, dropna=False):
        yield f"{name} at {'an unknown length' if np.isnan(length) else f'{length:.0f} tokens'}", group


def _point(name: str, group: Frame, found: Vertex, log_m: np.ndarray) -> dict[str, Any]:
    x = np.log(group["n"].to_numpy()[found.rows])
    state = np.exp(np.polyval(np.polyfit(x, log_m[found.rows], 1), np.log(found.n)))
    length = float(group["seq_len"].iloc[0]) if "seq_len" in group else np.nan
    return {
        "class": name, "arch": group["arch"].iloc[0], "seq_len": length, "compute": found.compute, "n": found.n,
        "d": found.d, "loss": found.loss, "perplexity": float(np.exp(found.loss)), "state_size": float(state),
    }  # fmt: skip


def _within(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """x less the mean of its class."""
    return x - (np.bincount(index, x) / np.bincount(index))[index]


def _common(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """One slope, an intercept a class, residuals."""
    dx = _within(x, index)
    slope = float(dx @ _within(y, index) / (dx @ dx))
    intercepts = np.bincount(index, y - slope * x) / np.bincount(index)
    return slope, intercepts, y - slope * x - intercepts[index]


def _f_test(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> tuple[float, float]:
    """Does a slope for each class explain more than one for all (analysis of covariance)?"""
    groups = [np.flatnonzero(index == i) for i in range(index.max() + 1)]
    groups = [g for g in groups if len(np.unique(x[g])) > 1]
    rows = np.concatenate(groups) if groups else np.empty(0, int)
    extra, freedom = len(groups) - 1, len(rows) - 2 * len(groups)
    if extra < 1 or freedom < 1:
        return np.nan, np.nan
    _, _, together = _common(x[rows], y[rows], np.unique(index[rows], return_inverse=True)[1])
    apart = sum(
        float(np.sum((y[g] - np.polyval(np.polyfit(x[g], y[g], 1), x[g])) ** 2)) for g in groups
    )  # fmt: skip
    f = (together @ together - apart) / extra / (apart / freedom)
    return float(f), float(stats.f.sf(f, extra, freedom))


def _resampled(cells: list, index: np.ndarray, times: int, rng: np.random.Generator) -> np.ndarray:
    """The common slope of each resample of the runs within each cell."""
    x, y = [], []
    for (compute, n, d, loss), rows, log_m in cells:
        drawn = resample_vertices(compute, n, d, loss, rows, times, rng)
        line = np.polyfit(np.log(n[rows]), log_m[rows], 1)
        x.append(np.polyval(line, drawn[:, 0]))
        y.append(np.exp(drawn[:, 2]))
    slopes = []
    for one, other in zip(np.array(x).T, np.array(y).T, strict=True):
        kept = np.flatnonzero(np.isfinite(one))
        groups = np.unique(index[kept], return_inverse=True)[1]
        if len(kept) >= BUDGETS and (_within(one[kept], groups) ** 2).sum() > 0:
            slopes.append(_common(one[kept], other[kept], groups)[0])
    return np.array(slopes)


def _frontier(state: np.ndarray, loss: np.ndarray) -> Any:
    """Which points no other one beats in both."""
    beaten = (state[None] <= state[:, None]) & (loss[None] <= loss[:, None])
    beaten &= (state[None] < state[:, None]) | (loss[None] < loss[:, None])
    return ~beaten.any(1)


def _floor(frame: Frame, index: np.ndarray) -> dict[str, float] | None:
    """P = F + c_class M^s: the one floor under which the logarithms of P - F lie straightest."""
    x, p = np.log(frame["state_size"].to_numpy()), frame["perplexity"].to_numpy()
    last = (frame["compute"] >= 0.9 * frame["compute"].max()).to_numpy()
    known = np.unique(index[~last])
    if len(x) < index.max() + 1 + 3 or (~last).sum() < len(known) + 2 or not np.isin(index[last], known).any():
        return None

    def best(x: np.ndarray, p: np.ndarray, index: np.ndarray, floors: np.ndarray) -> tuple[float, float, np.ndarray]:
        fits = [(floor, *_common(x, np.log(p - floor), index)) for floor in floors]
        # errors of ln P, not of ln (P - F), so that floors can be compared
        costs = [((rest * (p - floor) / p) ** 2).sum() for floor, _, _, rest in fits]
        floor, slope, intercepts, _ = fits[int(np.argmin(costs))]
        return floor, slope, intercepts

    def error(floors: np.ndarray) -> float:
        groups = np.searchsorted(known, index[~last])
        floor, slope, intercepts = best(x[~last], p[~last], groups, floors)
        ask = last & np.isin(index, known)
        guess = floor + np.exp(intercepts[np.searchsorted(known, index[ask])] + slope * x[ask])
        return float(np.sqrt(np.mean((np.log(guess) - np.log(p[ask])) ** 2)))

    floors = np.linspace(0, 0.995 * p.min(), FLOORS)
    floor, slope, _ = best(x, p, index, floors)
    return {
        "floor": float(floor),
        "exponent": slope,
        "error": error(np.linspace(0, 0.995 * p[~last].min(), FLOORS)),  # of what is held out, not even the range
        "error_without": error(np.zeros(1)),
    }
