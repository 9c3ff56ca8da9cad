"""The parametric law L(n, d) = E + A / n^alpha + B / d^beta (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mad.registry import unknown
from mad.scaling import solve
from mad.scaling.checks import Refused, TooFewRuns, enough, look, positive, resamples

NAMES = ("A", "B", "E", "alpha", "beta")
OBJECTIVES = ("huber", "lad", "mse", "log_mse")
RESAMPLED_AT_ONCE = 1 << 22  # weights, which bounds memory
LINEAR_PROGRAM_ROWS = 5000  # of "lad"; beyond, one row changes nothing
DIFFERENT = 3  # sizes and token counts at least: with two, E and A and alpha trade off against each other freely
WINDOW = 1.84 / 0.6745  # median absolute residuals, times rows^-1/5: half a uniform kernel's width (Silverman's rule)
FLAT = solve.GRID[0]  # an exponent below tends to 0, and the fit stopped on the way


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
        covariance: (5, 5) of NAMES; from the bootstrap where there was one, else the sandwich estimate.
        intervals: name -> (2.5 %, 97.5 %) of the bootstrap, of NAMES and of the exponents a and b; else empty.
        samples: (bootstrap, 5) of NAMES, what the intervals were taken from.
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
        """The best n, d and loss of a budget of `compute` FLOPs = flops_per_token n d."""
        return optimum(np.array([[self.A, self.B, self.E, self.alpha, self.beta]]), compute, flops_per_token, True)

    def band(self, compute: Any, level: float = 0.95, flops_per_token: float = 6.0) -> tuple[Optimum, Optimum]:
        """The lower and the upper end of the bootstrap's interval of the optimum of each budget.

        Raises:
            ValueError: the fit was made without a bootstrap.
        """
        if not len(self.samples):
            raise ValueError("an interval needs the bootstrap: fit_parametric(..., bootstrap=1000)")
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
    groups = np.arange(len(n)) if cluster is None else np.unique(np.asarray(cluster), return_inverse=True)[1]
    if len(groups) != len(n):
        raise ValueError(f"cluster must name the run of each of the {len(n)} rows, got {len(groups)}")
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
    flat = " and in ".join(name for name, exponent in (("n", theta[3]), ("d", theta[4])) if exponent < FLAT)
    if flat:
        raise Refused(
            f"no power law in {flat}: the best exponent tends to 0 (it is {theta[3:].min():.2g}); the loss of these "
            "runs falls like a logarithm, or not at all, so that E is not to be known"
        )
    samples = np.empty((0, 5))
    if bootstrap:
        rng, size = np.random.default_rng(seed), max(1, RESAMPLED_AT_ONCE // len(n))
        pieces = []
        for first in range(0, bootstrap, size):
            resampled = row_weights * resample(groups, min(size, bootstrap - first), rng)
            warm = np.broadcast_to(theta, (len(resampled), 5))
            pieces.append(solve.solve(stages[-2:], warm, resampled))
        samples = original(np.concatenate(pieces), center)
    best = original(theta[None], center)[0]
    with np.errstate(over="ignore", invalid="ignore"):  # an A or B that nothing bounds
        covariance = np.cov(samples.T) if bootstrap else sandwich(stages[-1], theta, row_weights, groups, center)
    intervals = {}
    if bootstrap:
        columns = np.concatenate([samples, exponents(samples)], 1)
        ends = np.percentile(columns, [2.5, 97.5], axis=0).T.tolist()
        intervals = {name: (low, high) for name, (low, high) in zip((*NAMES, "a", "b"), ends, strict=True)}
    A, B, E, alpha, beta = best.tolist()
    return ParametricFit(
        A, B, E, alpha, beta, float(value(theta[None])[0]), objective, covariance, intervals, samples,
        stages[0].residuals(theta[None])[0], float((6 * n * d).max()),
    )  # fmt: skip


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


def _checked_weights(weights: Any, rows: int) -> np.ndarray:
    given = np.asarray(weights, dtype=float)
    if given.shape != (rows,) or not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise ValueError(f"weights must be {rows} finite numbers >= 0, not all of them 0, got {given!r:.80}")
    return given
