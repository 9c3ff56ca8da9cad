"""The parametric law L(n, d) = E + A / n^alpha + B / d^beta (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mad.registry import unknown
from mad.scaling import solve
from mad.scaling.checks import (
    MOST_FAILED,
    NoFloor,
    NoInterval,
    Refused,
    TooFewRuns,
    Unbounded,
    enough,
    look,
    positive,
    resamples,
    warn,
)

NAMES = ("A", "B", "E", "alpha", "beta")
OBJECTIVES = ("huber", "lad", "mse", "log_mse")
RESAMPLED_AT_ONCE = 1 << 22  # weights, which bounds memory
LINEAR_PROGRAM_ROWS = 5000  # of "lad"; beyond, one row changes nothing
DIFFERENT = 3  # sizes and token counts at least: with two, E and A and alpha trade off against each other freely
WINDOW = 1.84 / 0.6745  # median absolute residuals, times rows^-1/5: half a uniform kernel's width (Silverman's rule)
FLAT, STEEP = solve.GRID[[0, -1]]  # an exponent below tends to 0, one above to infinity; the fit stopped on the way
NOTHING = 1e-9  # of the loss: a term that is smaller everywhere is rounding, and its exponent any


class Optimum(NamedTuple):
    """The compute-optimal point of a budget: parameters, tokens, loss; numbers or vectors, as the budget was."""

    n: Any
    d: Any
    loss: Any


@dataclass(frozen=True)
class ParametricFit:
    """L = E + A / n^alpha + B / d^beta, fitted.

    Attributes:
        A, B, E, alpha, beta: the parameters; E and the loss share their unit (nats per token).
        objective: its value at the optimum, a sum over the rows (times their weights).
        kind: "huber" | "lad" | "mse" | "log_mse".
        covariance: (5, 5) of NAMES; from the bootstrap where there was one, else the sandwich estimate. NaN in the rows
            and columns of a coefficient and an exponent that some resample leaves without a bound.
        intervals: name -> (2.5 %, 97.5 %) of the bootstrap, of NAMES and of the exponents a and b; else empty. An end
            is infinite where more than 2.5 % of the resamples leave it without a bound.
        samples: (resamples, 5) of NAMES, what the intervals were taken from: those of the bootstrap that a law could
            be fitted to. None where these are less than half.
        residuals: (rows,) ln predicted - ln observed; for "mse" predicted - observed.
        largest: the largest 6 n d of the rows; beyond it a prediction extrapolates.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    objective: float
    kind: str
    covariance: np.ndarray
    intervals: dict[str, tuple[float, float]]
    samples: np.ndarray
    residuals: np.ndarray
    largest: float

    @property
    def parameters(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in NAMES}

    @property
    def a(self) -> float:
        """The exponent of N* in the compute."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """The exponent of D* in the compute."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of NAMES, a and b."""
        errors: dict[str, float] = dict(zip(NAMES, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))
        slope = np.array([-self.beta, self.alpha]) / (self.alpha + self.beta) ** 2  # da / d(alpha, beta)
        errors["a"] = errors["b"] = float(np.sqrt(slope @ self.covariance[3:, 3:] @ slope))
        if len(self.samples):
            errors["a"] = errors["b"] = float(exponents(self.samples)[:, 0].std(ddof=1))
        return errors

    def predict(self, n: Any, d: Any) -> Any:
        """The loss of a model of n parameters after d tokens."""
        n, d = np.asarray(n, dtype=float), np.asarray(d, dtype=float)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def optimum(self, compute: Any, flops_per_token: float = 6.0) -> Optimum:
        """The best n, d and loss of a budget of `compute` FLOPs = flops_per_token n d.

        Raises:
            ValueError: a budget that is not positive.
        """
        if not (np.asarray(compute) > 0).all():
            raise ValueError(f"a budget must be positive, got {compute!r:.80}")
        return optimum(np.array([[self.A, self.B, self.E, self.alpha, self.beta]]), compute, flops_per_token, True)

    def band(self, compute: Any, level: float = 0.95, flops_per_token: float = 6.0) -> tuple[Optimum, Optimum]:
        """The lower and the upper end of the bootstrap's interval of the optimum of each budget.

        Raises:
            ValueError: the fit was made without a bootstrap, or the level is no share.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        if not len(self.samples):
            raise ValueError(
                "an interval needs the bootstrap, fit_parametric(..., bootstrap=1000), and runs enough that most "
                "resamples carry a law"
            )
        found = optimum(self.samples, np.atleast_1d(compute), flops_per_token)
        ends = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
        n, d, loss = (np.percentile(values, ends, axis=0) for values in found)
        return Optimum(n[0], d[0], loss[0]), Optimum(n[1], d[1], loss[1])


def optimum(parameters: np.ndarray, compute: Any, flops_per_token: float = 6.0, single: bool = False) -> Optimum:
    """Of each row of parameters (S, 5) in NAMES' order at each budget (...): (S, ...) values; `single`: (...)."""
    budget = np.asarray(compute, dtype=float) / flops_per_token
    A, B, E, alpha, beta = (column.reshape(-1, *[1] * budget.ndim) for column in parameters.T)
    g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    n = g * budget ** (beta / (alpha + beta))
    d = budget / n
    loss = E + A * n**-alpha + B * d**-beta
    return Optimum(*((values[0] if budget.ndim else float(values[0])) if single else values for values in (n, d, loss)))


def exponents(parameters: np.ndarray) -> np.ndarray:
    """(a, b) of each row of parameters (S, 5)."""
    alpha, beta = parameters[:, 3], parameters[:, 4]
    return np.stack([beta, alpha], 1) / (alpha + beta)[:, None]


def fit_parametric(
    n: Sequence[float] | np.ndarray,
    d: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    objective: str = "huber",
    delta: float = 1e-3,
    bootstrap: int = 0,
    cluster: Sequence | np.ndarray | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
) -> ParametricFit:
    """Fit L = E + A / n^alpha + B / d^beta.

    Hoffmann et al. 2022 (arXiv 2203.15556), with the corrections of Besiroglu et al. 2024 (arXiv 2404.10102): sums in
    place of means, parameters not rounded. The objective is minimised globally; see `mad.scaling.solve`.

    Args:
        n: parameters of each run's model, (rows,).
        d: tokens it was trained on.
        loss: what it reached, in nats.
        objective: "huber": sum of Huber_delta(ln predicted - ln observed); "lad": sum of its absolute values (what the
            published refit of Chinchilla minimised); "log_mse": sum of its squares; "mse": sum of squares of
            predicted - observed.
        delta: where the Huber function turns linear.
        bootstrap: resamples for intervals and covariance; 0: none.
        cluster: the run of each row, where rows are checkpoints: runs are resampled then, not rows.
        weights: of the rows, >= 0.
        seed: of the resampling.

    Raises:
        NotFinite, TooFewRuns: see `mad.scaling.checks`; fewer than three different n or d, too. Refused: no power of
            n, or of d, fits. ValueError: an unknown objective, or lengths that differ.
    """
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    if not 0 < delta < np.inf:
        raise ValueError(f"delta must be above 0 and finite, got {delta}")
    resamples(bootstrap)
    n, d, loss = positive(n=n, d=d, loss=loss)
    row_weights = np.ones_like(n) if weights is None else _checked_weights(weights, len(n))
    counted = row_weights > 0
    enough(int(counted.sum()), len(NAMES), "the parametric law, with five parameters,")
    for name, values in (("n", n), ("d", d)):
        different = len(np.unique(values[counted]))
        if different < DIFFERENT:
            raise TooFewRuns(f"the parametric law needs at least {DIFFERENT} different {name}, got {different}")
    look(n, d, loss, cluster is not None)
    groups = np.arange(len(n)) if cluster is None else _groups(cluster, len(n))
    enough(int(groups.max()) + 1, DIFFERENT, "resampling by cluster")

    x, y = np.log(n), np.log(d)
    center = np.array([x.mean(), y.mean()])
    deltas = {"huber": (delta,), "lad": solve.LAD_DELTAS}.get(objective, (np.inf,))
    stages = [solve.Problem(x - center[0], y - center[1], loss, objective == "mse", size) for size in deltas]

    def value(theta: np.ndarray) -> np.ndarray:
        if objective == "huber":
            return stages[-1].objective(theta, row_weights)
        r = stages[-1].residuals(theta)
        return (row_weights * (np.abs(r) if objective == "lad" else r * r)).sum(1)

    theta = solve.minimise(stages, value, row_weights)
    if objective == "lad" and len(n) <= LINEAR_PROGRAM_ROWS:
        theta = solve.absolute(stages[-1], theta, row_weights)
    _refuse_unbounded(theta, solve._terms(theta[None], stages[-1].x, stages[-1].y)[1])
    if np.exp(theta[2]) < NOTHING * loss.min():
        warn(
            NoFloor,
            f"the best E tends to 0 (it is {np.exp(theta[2]):.2g}): these runs say nothing of a loss that no run comes "
            "below, and predictions beyond them fall without end",
        )
    samples = np.empty((0, 5))
    if bootstrap:
        rng, size = np.random.default_rng(seed), max(1, RESAMPLED_AT_ONCE // len(n))
        pieces = []
        for first in range(0, bootstrap, size):
            resampled = row_weights * resample(groups, min(size, bootstrap - first), rng)
            resampled = resampled[_carry_a_law(resampled, n, d)]
            warm = np.broadcast_to(theta, (len(resampled), 5))
            pieces += [solve.solve(stages[-2:], warm, resampled)] if len(resampled) else []
        samples = original(np.concatenate([samples, *pieces]), center)
        failed = 1 - len(samples) / bootstrap
        if failed > MOST_FAILED or len(samples) < 2:
            warn(
                NoInterval,
                f"no intervals: {failed:.0%} of the resamples have fewer than {len(NAMES)} different runs, or than "
                f"{DIFFERENT} different n or d; train more",
            )
            samples = samples[:0]
    best = original(theta[None], center)[0]
    intervals: dict[str, tuple[float, float]] = {}
    if not len(samples):
        covariance = sandwich(stages[-1], theta, row_weights, groups, center)
    else:
        unbounded = (samples[:, 3:] > STEEP)[:, [0, 1, 0, 0, 1]] & (np.array(NAMES) != "E")
        covariance = _covariance(samples, unbounded)
        columns = np.concatenate([np.where(unbounded, np.inf, samples), exponents(samples)], 1)
        intervals = dict(zip((*NAMES, "a", "b"), map(_interval, columns.T), strict=True))
    A, B, E, alpha, beta = best.tolist()
    return ParametricFit(
        A, B, E, alpha, beta, float(value(theta[None])[0]), objective, covariance, intervals, samples,
        stages[0].residuals(theta[None])[0], float((6 * n * d).max()),
    )  # fmt: skip


def _refuse_unbounded(theta: np.ndarray, shares: list[np.ndarray]) -> None:
    """Raise where the optimum lies at no finite parameters; shares: of the loss, that each term has in each row."""
    for name, exponent, share in (("n", theta[3], shares[0]), ("d", theta[4], shares[1])):
        if share.max() < NOTHING:
            raise Refused(
                f"no power law in {name}: its term is {share.max():.1g} of the loss at most, that is none, and would "
                "be with any exponent; the loss does not depend on it"
            )
        if exponent > STEEP:
            raise Refused(
                f"no power law in {name}: the best exponent has no bound (it is {exponent:.3g}, the largest believed "
                f"{STEEP:.3g}); only the runs of the smallest {name} tell it, more sizes near it would"
            )
    flat = " and in ".join(name for name, exponent in (("n", theta[3]), ("d", theta[4])) if exponent < FLAT)
    if flat:
        raise Refused(
            f"no power law in {flat}: the best exponent tends to 0 (it is {theta[3:].min():.2g}); the loss of these "
            "runs falls like a logarithm, or not at all, so that E is not to be known"
        )


def _carry_a_law(weights: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Which resamples (S, rows) have as many different runs, sizes and token counts as a table must: (S,)."""
    there = weights > 0
    enough_of = there.sum(1) >= len(NAMES)  # rows that are repeated in the table are not told apart
    for values in (n, d):
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
        enough_of &= np.logical_or.reduceat(there[:, order], starts, axis=1).sum(1) >= DIFFERENT
    return enough_of


def _covariance(samples: np.ndarray, unbounded: np.ndarray) -> np.ndarray:
    """Of the samples (S, 5); NaN for what some resample leaves without a bound (S, 5), whose variance is that of the
    few largest."""
    columns = np.logical_or.reduce(unbounded)
    if columns.any():
        without = " and ".join(NAMES[j] for j in np.flatnonzero(columns))
        where = " and ".join(
            f"of {name} in {unbounded[:, j].mean():.1%}" for name, j in (("n", 3), ("d", 4)) if columns[j]
        )
        warn(
            Unbounded,
            f"the exponent {where} of the resamples has no bound (it is above {STEEP:.3g}): "
            f"{without} have no variance and no standard error; their intervals hold",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # of what is struck out
        covariance = np.cov(samples.T)
    covariance[columns] = covariance[:, columns] = np.nan
    return covariance


def original(theta: np.ndarray, center: np.ndarray) -> np.ndarray:
    """theta (S, 5) of the centred problem -> parameters (S, 5) in NAMES' order."""
    a, b, e, alpha, beta = theta.T
    with np.errstate(over="ignore"):
        return np.stack([np.exp(a + alpha * center[0]), np.exp(b + beta * center[1]), np.exp(e), alpha, beta], 1)


def resample(groups: np.ndarray, times: int, rng: np.random.Generator) -> np.ndarray:
    """(times, rows): how often each row is drawn when its groups (rows,) 0, 1, ... are drawn with replacement."""
    number = int(groups.max()) + 1
    return rng.multinomial(number, np.full(number, 1 / number), size=times)[:, groups].astype(float)


def sandwich(problem: solve.Problem, theta: np.ndarray, weights: np.ndarray, groups: np.ndarray, center: np.ndarray):
    """Covariance (5, 5) of NAMES: H^-1 (sum over groups of score score') H^-1, carried over to the parameters.

    H needs the share of residuals within delta. Where their scatter is much wider than delta, as it is on real tables,
    only the handful that the fit passes through lie there; so the share comes from a window of the scatter's width.
    """
    prediction, parts = solve._terms(theta[None], problem.x, problem.y)
    jacobian = problem.jacobian(parts)[:, 0] * (np.exp(prediction[0]) if problem.raw else 1.0)  # (5, rows)
    r = problem.residuals(theta[None])[0]
    inside = np.ones_like(r)
    if np.isfinite(problem.delta):
        window = max(problem.delta, WINDOW * np.median(np.abs(r)) * len(r) ** -0.2)
        inside = (np.abs(r) <= window) * problem.delta / window
    scores = np.zeros((int(groups.max()) + 1, 5))
    np.add.at(scores, groups, (weights * np.clip(r, -problem.delta, problem.delta) * jacobian).T)
    bread = np.linalg.pinv((weights * inside * jacobian) @ jacobian.T)
    A, B, E, _, _ = original(theta[None], center)[0]
    change = np.diag([A, B, E, 1.0, 1.0])  # of the parameters with theta
    change[0, 3], change[1, 4] = A * center[0], B * center[1]
    freedom = len(r) / max(1, len(r) - len(NAMES))
    return freedom * change @ bread @ (scores.T @ scores) @ bread @ change.T


def _interval(values: np.ndarray) -> tuple[float, float]:
    """2.5 % and 97.5 % of them; between infinite ones there is nothing to interpolate."""
    method = "linear" if np.isfinite(values).all() else "nearest"
    low, high = np.percentile(values, [2.5, 97.5], method=method).tolist()
    return low, high


def _groups(cluster: Any, rows: int) -> np.ndarray:
    """Names of runs as numbers 0, 1, ... (rows,)."""
    names = list(cluster)
    if len(names) != rows:
        raise ValueError(f"cluster must name the run of each of the {rows} rows, got {len(names)}")
    for row, name in enumerate(names):
        if name is None or name != name:
            raise ValueError(f"cluster must name the run of each row, row {row} (from 0) has none")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def _checked_weights(weights: Any, rows: int) -> np.ndarray:
    given = np.asarray(weights, dtype=float)
    if given.shape != (rows,) or not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise ValueError(f"weights must be {rows} finite numbers >= 0, not all of them 0, got {given!r:.80}")
    return given
