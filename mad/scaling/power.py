"""Power laws y = c x^k, and with a floor y = F + c x^k, through a handful of points."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from mad.scaling.checks import enough, positive, resamples


@dataclass(frozen=True)
class PowerLaw:
    """y = floor + coefficient x^exponent.

    Attributes:
        standard_error: of the exponent, from the scatter of ln y about the law.
        interval: 95 % of the exponent: of the bootstrap where there was one, else of Student's t; infinite where the
            law has as many parameters as there are points, which it then always goes through.
        residuals: ln predicted - ln observed.
        samples: (bootstrap, 3) of floor, coefficient, exponent.
    """

    coefficient: float
    exponent: float
    floor: float
    standard_error: float
    interval: tuple[float, float]
    residuals: np.ndarray
    samples: np.ndarray

    def predict(self, x: Any) -> Any:
        return self.floor + self.coefficient * np.asarray(x, dtype=float) ** self.exponent


class Exponents:
    """a and b of a fit that has power laws of N* and of D* in the compute."""

    n_law: PowerLaw
    d_law: PowerLaw

    @property
    def a(self) -> float:
        """The exponent of N* in the compute."""
        return self.n_law.exponent

    @property
    def b(self) -> float:
        """The exponent of D* in the compute."""
        return self.d_law.exponent


def fit_power_law(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    floor: bool = False,
    *,
    bootstrap: int = 0,
    seed: int = 0,
) -> PowerLaw:
    """Least squares of ln y.

    Args:
        x, y: positive, (points,).
        floor: fit F >= 0 too; else it is 0.
        bootstrap: resamples of the points, for the interval.

    Raises:
        NotFinite, TooFewRuns: fewer than 2 points, 3 with a floor, or all at one x.
    """
    resamples(bootstrap)
    x, y = positive(x=x, y=y)
    enough(len(np.unique(x)), 3 if floor else 2, f"a power law{' with a floor' if floor else ''} (at different x)")
    solve = _with_floor if floor else _straight
    best = solve(np.log(x), y)
    samples = np.empty((0, 3))
    if bootstrap:
        rng, drawn = np.random.default_rng(seed), []
        while len(drawn) < bootstrap:
            rows = rng.integers(len(x), size=len(x))
            if len(np.unique(x[rows])) >= (3 if floor else 2):
                drawn.append(solve(np.log(x[rows]), y[rows]))
        samples = np.array(drawn)
    base, coefficient, exponent = best
    predicted = base + coefficient * x**exponent
    residuals = np.log(predicted) - np.log(y)
    freedom = len(x) - (3 if floor else 2)
    slope = coefficient * x**exponent * np.log(x) / predicted  # d ln y / d exponent
    columns = np.stack([coefficient * x**exponent / predicted, slope, *([1 / predicted] if floor else [])], 1)
    error = np.inf
    if freedom > 0:
        error = float(np.sqrt(np.linalg.pinv(columns.T @ columns)[1, 1] * (residuals @ residuals) / freedom))
    if freedom <= 0:
        low, high = -np.inf, np.inf
    elif bootstrap:
        low, high = np.percentile(samples[:, 2], [2.5, 97.5])
    else:
        width = stats.t.ppf(0.975, freedom) * error
        low, high = exponent - width, exponent + width
    return PowerLaw(coefficient, exponent, base, error, (float(low), float(high)), residuals, samples)


def _straight(log_x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    exponent, intercept = np.polyfit(log_x, np.log(y), 1)
    return 0.0, float(np.exp(intercept)), float(exponent)


def _with_floor(log_x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Linear in floor and coefficient for a given exponent: the best of a grid of these, then all three together."""
    center = log_x.mean()
    z, target = log_x - center, np.log(y)
    grid = np.concatenate([-np.geomspace(3, 0.01, 60), np.geomspace(0.01, 3, 60)])
    power = np.exp(grid[:, None] * z) / y  # relative errors
    one = np.broadcast_to(1 / y, power.shape)
    design = np.stack([one, power], -1)
    normal = np.einsum("gri,grj->gij", design, design) + 1e-14 * np.eye(2)
    found = np.linalg.solve(normal, design.sum(1)[..., None])[..., 0]
    squares = len(y) - (found * design.sum(1)).sum(-1)
    squares[(found <= 0).any(1)] = np.inf
    straight = _straight(z, y)
    begin = np.array([0.0, np.log(straight[1]), straight[2]])
    if np.isfinite(squares).any():
        i = int(np.argmin(squares))
        begin = np.array([found[i, 0], np.log(found[i, 1]), grid[i]])

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.log(p[0] + np.exp(p[1] + p[2] * z)) - target

    # without a floor the rest has no bound: at F = 0, or as near as rounding tells, the straight line is the answer
    result = optimize.least_squares(
        residuals, begin, bounds=([0, -np.inf, -np.inf], np.inf), x_scale=[y.min(), 1, 1], xtol=1e-14, ftol=1e-14
    )
    of_line = (residuals(np.array([0.0, np.log(straight[1]), straight[2]])) ** 2).sum()
    if of_line <= 2 * result.cost * (1 + 1e-9):
        return 0.0, float(straight[1] * np.exp(-straight[2] * center)), straight[2]
    base, log_coefficient, exponent = result.x
    return float(base), float(np.exp(log_coefficient - exponent * center)), float(exponent)
