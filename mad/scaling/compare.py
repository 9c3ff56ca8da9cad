"""Is one architecture better than another at a budget, by how much compute, and does a law predict what comes next?"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from mad.scaling.checks import Extrapolation, ScalingWarning, TooFewBudgets, warn
from mad.scaling.isoflop import BUDGETS, SAME_BUDGET, budgets, vertex
from mad.scaling.parametric import ParametricFit, fit_parametric, optimum
from mad.scaling.table import Frame, clusters, last, part, per_token, standard

NEAR = 1.01  # steps are whole: runs end up a little beside their budget


@dataclass(frozen=True)
class Comparison:
    """Architecture a against b, each at its compute-optimal size for the same budget.

    Attributes:
        a, b, compute: what was compared.
        loss_a, loss_b: by their parametric laws.
        difference: loss_a - loss_b, negative where a is better; `difference_interval` is 95 % of the joint bootstrap.
        multiplier: the compute that b needs for a's loss, over a's; above 1 where a is better, infinite where b never
            gets there. `multiplier_interval`: 95 %.
        extrapolated: how many times the budget exceeds the largest at which both were trained; 1 where it does not.
    """

    a: str
    b: str
    compute: float
    loss_a: float
    loss_b: float
    difference: float
    difference_interval: tuple[float, float]
    multiplier: float
    multiplier_interval: tuple[float, float]
    extrapolated: float


def compare(
    table: Frame, a: str, b: str, at_compute: float, *, bootstrap: int = 1000, seed: int = 0
) -> Comparison:  # fmt: skip
    """Compare two architectures at a budget.

    Args:
        table: a row a run, columns as in `mad.scaling.table`.
        a, b: two values of its `arch`.
        at_compute: training FLOPs.
        bootstrap: resamples, of the runs of both; with too few runs to resample the intervals are NaN.

    Raises:
        ValueError: no runs of a or b, or a budget that is not positive. Refused: too few runs for a law.
    """
    if not 0 < at_compute < np.inf:
        raise ValueError(f"at_compute must be positive and finite, got {at_compute}")
    runs = standard(table)
    fits, costs, smallest, largest = [], [], [], []
    for k, name in enumerate((a, b)):
        rows = part(runs, name)
        options: Any = {"bootstrap": bootstrap, "cluster": clusters(rows), "seed": 2 * seed + k}  # a stream for each
        fits.append(fit_parametric(rows["n"], rows["d"], rows["loss"], **options))
        costs.append(per_token(rows["compute"], rows["n"], rows["d"]))
        smallest.append(rows["compute"].min())
        largest.append(rows["compute"].max())
    beyond = max(1.0, at_compute / min(largest))
    outside(at_compute, max(smallest), min(largest), "both were")
    best = [np.array([list(fit.parameters.values())]) for fit in fits]
    difference, multiplier, losses = _measure(best, costs, at_compute)
    intervals = [(np.nan, np.nan)] * 2
    pairs = min(len(fit.samples) for fit in fits)
    if pairs:
        drawn = _measure([fit.samples[:pairs] for fit in fits], costs, at_compute)[:2]
        intervals = [tuple(np.percentile(values, [2.5, 97.5], method="nearest").tolist()) for values in drawn]
    return Comparison(
        a, b, float(at_compute), float(losses[0][0]), float(losses[1][0]), float(difference[0]), intervals[0],
        float(multiplier[0]), intervals[1], beyond,
    )  # fmt: skip


def outside(compute: float, smallest: float, largest: float, who: str) -> None:
    """Warn of a prediction at a budget that `who` did not reach, or began beyond."""
    for end, edge, out in (
        ("largest", largest, compute > NEAR * largest), ("smallest", smallest, compute < smallest / NEAR)
    ):  # fmt: skip
        if out:
            times = compute / edge
            warn(Extrapolation, f"{compute:.3g} FLOPs is {times:.3g} times the {end} budget at which {who} trained")


def _measure(parameters: list[np.ndarray], costs: list[float], compute: float) -> tuple[Any, Any, list]:
    """Difference and multiplier of each pair of rows of two sets of parameters (S, 5)."""
    loss_a, loss_b = (optimum(p, compute, k).loss for p, k in zip(parameters, costs, strict=True))
    # the optimum's loss is E + c C^-(alpha beta / (alpha + beta)): solved for C where b reaches a's loss
    b = parameters[1]
    slope = b[:, 3] * b[:, 4] / (b[:, 3] + b[:, 4])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = (loss_b - b[:, 2]) / (loss_a - b[:, 2])
        multiplier = np.where(loss_a > b[:, 2], ratio ** (1 / slope), np.inf)
    return loss_a - loss_b, multiplier, [loss_a, loss_b]


@dataclass(frozen=True)
class Holdout:
    """What a law fitted without the largest budget says about it.

    Attributes:
        compute: the budget held out.
        fit: the law of the others.
        errors: ln predicted - ln observed of each run held out, of its last row where rows are checkpoints.
        rmse: their root mean square.
        bias: their mean.
        rmse_within: the same root mean square of the runs that were fitted, to compare with.
        n_predicted, n_observed: N* of that budget by the law, and at its own vertex (NaN where it has none).
    """

    compute: float
    fit: ParametricFit
    errors: np.ndarray
    rmse: float
    bias: float
    rmse_within: float
    n_predicted: float
    n_observed: float


def holdout(table: Frame, *, same_budget: float = SAME_BUDGET) -> Holdout:
    """Fit one architecture's runs without the largest budget, and predict it.

    Where rows are checkpoints a run's budget is that of its last one, and it is held out with all of them: the luck
    that they share would tell the law what to predict.

    Raises:
        TooFewBudgets: fewer than three. Refused: too few other runs for a law. ValueError: the table holds several
            architectures.
    """
    runs = standard(table)
    if runs["arch"].nunique() > 1:
        names = ", ".join(sorted(runs["arch"].unique()))
        raise ValueError(f"holdout takes the runs of one architecture, got {names}; choose by table[table.arch == ...]")
    ends, cluster = last(runs), clusters(runs)
    compute, n, d, loss = (ends[key].to_numpy() for key in ("compute", "n", "d", "loss"))
    groups = budgets(compute, same_budget)
    if len(groups) < BUDGETS:
        raise TooFewBudgets(f"holding out the largest budget needs at least {BUDGETS} budgets, got {len(groups)}")
    held = groups[-1]
    names = runs.index.to_series() if cluster is None else cluster
    rest = runs[~names.isin(names[ends.index[held]])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingWarning)  # said of the whole table already
        fit = fit_parametric(rest["n"], rest["d"], rest["loss"], cluster=clusters(rest))
    errors = np.log(fit.predict(n[held], d[held]) / loss[held])
    found = vertex(compute, n, d, loss, held)
    return Holdout(
        found.compute, fit, errors, float(np.sqrt((errors**2).mean())), float(errors.mean()),
        float(np.sqrt((fit.residuals**2).mean())), fit.optimum(found.compute, per_token(compute, n, d)).n,
        np.nan if found.reason else found.n,
    )  # fmt: skip
