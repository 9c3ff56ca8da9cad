"""IsoFLOP profiles (Hoffmann et al. 2022, arXiv 2203.15556, approach 2): a parabola a budget, then power laws.

At each budget the loss is a parabola in ln n; its vertex is the compute-optimal model. Power laws go through the
vertices. A parabola is a truncated Taylor series, so for alpha != beta the vertex lies off the true optimum by a factor
that grows with the range of sizes (arXiv 2603.22339): the same profiles are made without noise from the parametric law
and fitted too, which shows by how much.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mad.scaling.checks import (
    MOST_FAILED,
    Edge,
    NoInteriorMinimum,
    NoInterval,
    Refused,
    ScalingWarning,
    TooFewBudgets,
    look,
    positive,
    resamples,
    warn,
)
from mad.scaling.parametric import NOTHING, Optimum, ParametricFit, fit_parametric
from mad.scaling.power import Exponents, PowerLaw, fit_power_law
from mad.scaling.table import per_token

SAME_BUDGET = 0.1  # runs this much apart, relatively, are of one budget
WIDEST = 2.5  # times that, from the first run of a budget to its last: those within +-10 % of it are 22 % apart
BUDGETS, POINTS = 3, 3  # at least
SHOWN = 3  # budgets that a warning explains


@dataclass(frozen=True)
class Vertex:
    """The compute-optimal point of one budget.

    Attributes:
        compute: the budget, the geometric mean of its runs'.
        n, d, loss: at the parabola's minimum.
        curvature: of the loss in ln n; the flatter, the less is n known.
        parabola: coefficients of ln n, highest power first.
        rows: its runs' rows in the table.
        reason: why it is not used; None where it is.
        intervals: of n, d and loss, (2.5 %, 97.5 %); empty without a bootstrap.
    """

    compute: float
    n: float
    d: float
    loss: float
    curvature: float
    parabola: tuple[float, float, float]
    rows: np.ndarray
    reason: str | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class IsoflopFit(Exponents):
    """N* = coefficient C^a and D* = coefficient C^b through the vertices.

    Attributes:
        vertices: one a budget, also those left out (`reason`).
        n_law, d_law: the power laws; their `interval`s are those of the bootstrap through both stages, if any.
        bias: what the method itself adds where the parametric law holds: {"n": factor of N* at each used budget, "a":
            difference of the exponent}; None where the parametric law could not be fitted.
        parametric: that law.
        failed: share of the resamples that could not be fitted; above one half there are no intervals.
    """

    vertices: list[Vertex]
    n_law: PowerLaw
    d_law: PowerLaw
    bias: dict[str, Any] | None
    parametric: ParametricFit | None
    failed: float

    @property
    def used(self) -> list[Vertex]:
        return [vertex for vertex in self.vertices if vertex.reason is None]

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % of the exponents."""
        return {"a": self.n_law.interval, "b": self.d_law.interval}

    def optimum(self, compute: Any) -> Optimum:
        """n and d of a budget by the power laws; the loss by interpolating those of the vertices (NaN outside)."""
        xs, ys = (np.array([getattr(v, key) for v in self.used]) for key in ("compute", "loss"))
        loss = np.interp(np.log(compute), np.log(xs), np.log(ys), left=np.nan, right=np.nan)
        return Optimum(self.n_law.predict(compute), self.d_law.predict(compute), np.exp(loss))


def fit_isoflop(
    compute: Sequence[float] | np.ndarray,
    n: Sequence[float] | np.ndarray,
    d: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    bootstrap: int = 0,
    seed: int = 0,
    same_budget: float = SAME_BUDGET,
) -> IsoflopFit:
    """Fit IsoFLOP profiles.

    Args:
        compute: training FLOPs of each run, (rows,); runs within `same_budget` of the next one share a budget, at
            most 2.5 times that wide.
        n, d, loss: parameters, tokens, loss.
        bootstrap: resamples of the runs of every budget; both stages are fitted again to each. With 5 to 7 runs a
            budget the intervals of simulated tables were about twice as wide as they need be, with 15 right.

    Raises:
        TooFewBudgets: fewer than three. NoInteriorMinimum: fewer than three have a minimum inside the sizes trained.
        NotFinite: see `mad.scaling.checks`.
    """
    resamples(bootstrap)
    compute, n, d, loss = positive(compute=compute, n=n, d=d, loss=loss)
    look(n, d, loss, False)
    groups = budgets(compute, same_budget)
    if len(groups) < BUDGETS:
        found = ", ".join(f"{compute[rows].mean():.3g}" for rows in groups)
        raise TooFewBudgets(
            f"a power law needs at least {BUDGETS} budgets, got {len(groups)}: {found} FLOPs (budgets within "
            f"{same_budget:.0%} count as one)"
        )
    vertices = [vertex(compute, n, d, loss, rows) for rows in groups]
    laws = _laws(vertices)
    left_out(vertices)
    failed = 0.0
    if bootstrap:
        rng = np.random.default_rng(seed)
        vertices, laws, failed = _resampled(vertices, laws, compute, n, d, loss, bootstrap, rng)
    law, bias = _bias(compute, n, d, loss, vertices)
    return IsoflopFit(vertices, laws[0], laws[1], bias, law, failed)


def left_out(vertices: list[Vertex], of: str = "") -> None:
    """Warn once of the budgets that are not used, and why."""
    left = [v for v in vertices if v.reason]
    if left:
        shown = "; ".join(f"{v.compute:.3g} FLOPs: {v.reason}" for v in left[:SHOWN])
        more = f"; and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        warn(Edge, f"{len(left)} of {len(vertices)} budgets{of} are left out: {shown}{more}")


def budgets(compute: np.ndarray, same: float = SAME_BUDGET) -> list[np.ndarray]:
    """Rows of each budget, smallest first.

    Each run is within `same` of the next one, so that budgets roughly met stay whole, and within WIDEST times
    that of the first one, so that compute evenly spread is not one budget.
    """
    order = np.argsort(compute, kind="stable")
    groups: list[list[int]] = []
    for row in order:
        first, last = (compute[groups[-1][end]] for end in (0, -1)) if groups else (0.0, 0.0)
        if compute[row] <= min(last * (1 + same), first * (1 + WIDEST * same)):
            groups[-1].append(int(row))
        else:
            groups.append([int(row)])
    return [np.array(rows) for rows in groups]


def vertex(compute: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, rows: np.ndarray) -> Vertex:
    """The vertex of one budget's rows; with a `reason` where it is none."""
    budget = float(np.exp(np.log(compute[rows]).mean()))
    sizes = len(np.unique(n[rows]))
    if sizes < POINTS:
        nothing = (np.nan, np.nan, np.nan)
        return Vertex(
            budget, np.nan, np.nan, np.nan, np.nan, nothing, rows, f"it has {sizes} sizes, a parabola needs {POINTS}"
        )
    x = np.log(n[rows])
    middle = x.mean()
    curve = np.polyfit(x - middle, loss[rows], 2)
    return _vertex(curve, middle, x, np.log(d[rows]), budget, rows)


def _vertex(curve, middle: float, x: np.ndarray, log_d: np.ndarray, budget: float, rows: np.ndarray) -> Vertex:
    c2, c1, c0 = (float(c) for c in curve)
    plain = (c2, c1 - 2 * c2 * middle, c0 - c1 * middle + c2 * middle**2)
    if np.abs(curve[:2] * np.ptp(x) ** np.array([2, 1])).max() < NOTHING * abs(c0):
        flat = (np.nan, np.nan, np.nan)
        return Vertex(budget, np.nan, np.nan, np.nan, np.nan, flat, rows, "its loss is the same at all sizes")
    if c2 <= 0:
        return Vertex(budget, np.nan, np.nan, np.nan, 2 * c2, plain, rows, "its parabola opens downward")
    shift = -c1 / (2 * c2)
    at = middle + shift
    slope = np.polyfit(x - middle, log_d, 1)
    n, d = float(np.exp(at)), float(np.exp(np.polyval(slope, shift)))
    reason = None
    if not x.min() < at < x.max():
        side = "below the smallest" if at <= x.min() else "above the largest"
        reason = f"its minimum, {n:.3g} parameters, lies {side} model trained"
    return Vertex(budget, n, d, c0 + c1 * shift + c2 * shift**2, 2 * c2, plain, rows, reason)


def _laws(vertices: list[Vertex]) -> tuple[PowerLaw, PowerLaw]:
    used = [v for v in vertices if v.reason is None]
    if len(used) < BUDGETS:
        reasons = "; ".join(f"{v.compute:.3g} FLOPs: {v.reason}" for v in vertices if v.reason)
        raise NoInteriorMinimum(
            f"{len(used)} of {len(vertices)} budgets have a minimum inside, {BUDGETS} must: {reasons}"
        )
    budget = [v.compute for v in used]
    return fit_power_law(budget, [v.n for v in used]), fit_power_law(budget, [v.d for v in used])


def resample_vertices(
    compute: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, rows: np.ndarray, times: int,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """ln n, ln d, ln loss at the vertex of each resample of one budget's rows, (times, 3); NaN where there is none."""
    counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=times).astype(float)
    x, y, log_d = np.log(n[rows]), loss[rows], np.log(d[rows])
    middle = x.mean()
    powers = (x - middle)[:, None] ** np.arange(3)  # (rows, 3)
    normal = np.einsum("sr,ri,rj->sij", counts, powers, powers)
    right = np.einsum("sr,ri,r->si", counts, powers, y)
    solvable = np.array([len(np.unique(x[c > 0])) >= POINTS for c in counts])
    normal[~solvable] = np.eye(3)
    c0, c1, c2 = np.linalg.solve(normal, right[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = -c1 / (2 * c2)
        low, high = x.min() - middle, x.max() - middle
        slope = np.polyfit(x - middle, log_d, 1)
        found = np.stack([middle + shift, np.polyval(slope, shift), np.log(c0 + c1 * shift + c2 * shift**2)], 1)
    found[~(solvable & (c2 > 0) & (shift > low) & (shift < high))] = np.nan
    return found


def _resampled(vertices, laws, compute, n, d, loss, times: int, rng: np.random.Generator):
    """Vertices and laws with the intervals of a bootstrap through both stages, and the share of resamples lost."""
    used = [v for v in vertices if v.reason is None]
    drawn = np.stack([resample_vertices(compute, n, d, loss, v.rows, times, rng) for v in used], 1)  # (S, budgets, 3)
    log_c = np.log([v.compute for v in used])
    kept: Any = np.isfinite(drawn).all(axis=2)
    fits = kept.sum(1) >= BUDGETS
    failed = float(1 - fits.mean())
    if failed > MOST_FAILED:
        warn(
            NoInterval,
            f"no intervals: {failed:.0%} of the resamples have no minimum inside at {BUDGETS} budgets; "
            "train more sizes at each budget",
        )
        none = {"standard_error": np.nan, "interval": (np.nan, np.nan)}
        return vertices, [PowerLaw(**{**vars(law), **none}) for law in laws], failed
    slopes = np.array([np.polyfit(log_c[k], s[k, :2], 1).ravel() for k, s in zip(kept[fits], drawn[fits], strict=True)])
    new = []
    for law, column in zip(laws, (0, 1), strict=True):
        exponent, intercept = slopes[:, column], slopes[:, 2 + column]
        samples = np.stack([np.zeros_like(exponent), np.exp(intercept), exponent], 1)
        interval = tuple(np.percentile(exponent, [2.5, 97.5]).tolist())
        error = float(exponent.std(ddof=1))
        new.append(PowerLaw(law.coefficient, law.exponent, 0.0, error, interval, law.residuals, samples))
    ends = np.exp(np.nanpercentile(drawn, [2.5, 97.5], axis=0))  # (2, budgets, 3)
    found = {v.compute: ends[:, i].T.tolist() for i, v in enumerate(used)}

    def with_intervals(v: Vertex) -> Vertex:
        given = dict(zip(("n", "d", "loss"), map(tuple, found.get(v.compute, [])), strict=False))
        return Vertex(**{**vars(v), "intervals": given})

    whole = [with_intervals(v) for v in vertices]
    return whole, new, failed


def _bias(compute, n, d, loss, vertices: list[Vertex]) -> tuple[ParametricFit | None, dict[str, Any] | None]:
    """The method's own error on the parametric law of these very runs."""
    used = [v for v in vertices if v.reason is None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingWarning)
        try:
            law = fit_parametric(n, d, loss)
            clean = [vertex(compute, n, d, law.predict(n, d), v.rows) for v in used]
            _laws(clean)
        except Refused:
            return None, None
    truth = law.optimum(np.array([v.compute for v in clean]), per_token(compute, n, d))
    factor = np.array([v.n for v in clean]) / truth.n
    return law, {"n": factor, "a": float(np.polyfit(np.log([v.compute for v in clean]), np.log(factor), 1)[0])}
