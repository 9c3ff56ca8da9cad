"""Data-constrained scaling (Muennighoff et al. 2023, arXiv 2305.16264): what repeated tokens are worth.

    D' = U + U R_D* (1 - exp(-R_D / R_D*))      U: unique tokens used, R_D: how often they were repeated
    N' = V + V R_N* (1 - exp(-R_N / R_N*))      V: parameters that U tokens warrant, R_N: how far n exceeds them
    L  = E + A / N'^alpha + B / D'^beta

The two constants are weakly identified, and the published pair is a local minimum on its own table: the whole plane is
searched, and the profile of each constant says how far the other can make up for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from mad.scaling.checks import Refused, Unbounded, enough, positive, warn
from mad.scaling.parametric import NAMES
from mad.scaling.solve import local_minima

# The law of unrepeated data of the paper, on C4; another corpus or tokeniser has another one.
C4 = {"A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804), "alpha": 0.3526596, "beta": 0.3526596}
GRID = np.geomspace(0.05, 2000, 160)  # of both constants; a fit that leads beyond ends there
FOLLOWED = 20  # minima of the grid
BLOCK = 16  # grid rows evaluated together


@dataclass(frozen=True)
class DataConstrainedFit:
    """R_D* and R_N*, the repetitions after which tokens, and parameters, are worth 1 - 1/e of what they can be.

    Attributes:
        rd, rn: the constants at the best objective, 0.05 to 2000; at an end they are not determined, but beyond.
        objective: sum of Huber_delta(ln predicted - ln observed).
        minima: all local minima found, (rd, rn, objective), best first.
        profile_rd, profile_rn: (points, 2): a value of the constant, and the objective at the best value of the other.
        base: the law of unrepeated data.
        residuals: ln predicted - ln observed.
    """

    rd: float
    rn: float
    objective: float
    minima: list[tuple[float, float, float]]
    profile_rd: np.ndarray
    profile_rn: np.ndarray
    base: dict[str, float]
    residuals: np.ndarray

    def predict(self, n: Any, d: Any, unique: Any) -> np.ndarray:
        """The loss of n parameters after d tokens, `unique` of which were different."""
        n, d, unique = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (n, d, unique))
        quantities = _quantities(n, d, unique, self.base)
        return np.exp(_log_loss(quantities, np.array(self.rd), np.array(self.rn), self.base))

    def plausible(self, within: float = 0.05) -> dict[str, tuple[float, float]]:
        """The range of each constant over which its profile stays within a share of the best objective; 0 or infinite
        where that goes on to the end of the grid, 0.05 to 2000; no narrower than the grid, whose steps are 7 %."""
        ranges = {}
        for name, profile in (("rd", self.profile_rd), ("rn", self.profile_rn)):
            inside = np.flatnonzero(profile[:, 1] <= (1 + within) * self.objective)
            after = int(np.searchsorted(profile[:, 0], getattr(self, name)))  # the best lies before it
            first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (max(after - 1, 0), after)
            low = profile[first, 0] if first > 0 else 0.0
            high = profile[last, 0] if last < len(profile) - 1 else np.inf
            ranges[name] = (float(low), float(high))
        return ranges


def fit_data_constrained(
    n: Sequence[float] | np.ndarray,
    d: Sequence[float] | np.ndarray,
    unique: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    base: Mapping[str, float] | Any = None,
    delta: float = 1e-3,
) -> DataConstrainedFit:
    """Fit the worth of repeated tokens and of excess parameters.

    Args:
        n, d: parameters, tokens trained on, (rows,).
        unique: tokens that there were; those used are at most d.
        loss: in nats.
        base: the law of unrepeated data: a ParametricFit, or A, B, E, alpha, beta. None: the paper's, of C4, which is
            right for its corpus and tokeniser only.
        delta: of the Huber objective.

    Raises:
        NotFinite, TooFewRuns: see `mad.scaling.checks`. Refused: nothing was repeated. ValueError: a base that lacks a
            parameter.
    """
    n, d, unique, loss = positive(n=n, d=d, unique=unique, loss=loss)
    enough(len(n), 3, "the data-constrained law, with two constants,")
    law = _base(base)
    quantities, target = _quantities(n, d, unique, law), np.log(loss)
    if not (d > unique).any():
        raise Refused("no run has more tokens than unique ones: what was never repeated says nothing of repetition")

    def objective(rd: np.ndarray, rn: np.ndarray) -> np.ndarray:
        size = np.abs(_log_loss(quantities, rd[..., None], rn[..., None], law) - target)
        small = np.minimum(size, delta)
        return (small * (size - 0.5 * small)).sum(-1)

    surface = np.concatenate(
        [objective(rows[:, None], GRID[None, :]) for rows in np.split(GRID, range(BLOCK, len(GRID), BLOCK))]
    )
    found = []
    for i, j in local_minima(surface)[:FOLLOWED]:
        result = optimize.minimize(
            lambda p: float(objective(np.exp(p[0]), np.exp(p[1]))), np.log([GRID[i], GRID[j]]),
            method="Nelder-Mead", bounds=np.log([(GRID[0], GRID[-1])] * 2),
            options={"xatol": 1e-8, "fatol": 1e-15, "maxiter": 2000},
        )  # fmt: skip
        point = (*np.exp(result.x).tolist(), float(result.fun))
        if not any(np.allclose(np.log(point[:2]), np.log(other[:2]), atol=1e-3) for other in found):
            found.append(point)
    found.sort(key=lambda point: point[2])
    rd, rn, best = found[0]
    fitted = DataConstrainedFit(
        rd, rn, best, found, np.stack([GRID, surface.min(1)], 1), np.stack([GRID, surface.min(0)], 1), law,
        _log_loss(quantities, np.array(rd), np.array(rn), law) - target,
    )  # fmt: skip
    for name, what in (("rd", "repeated tokens"), ("rn", "excess parameters")):
        value, (low, high) = getattr(fitted, name), fitted.plausible()[name]
        if low == 0 and high == np.inf:
            said = f"any value fits, so that these runs say nothing of {what}"
        elif 1.001 * GRID[0] < value < GRID[-1] / 1.001:
            continue
        else:
            worth = "as much as new ones" if value > 1 else "nothing"
            said = f"it is {value:.3g}, the last that was tried, or beyond: {what} are worth {worth} by these runs"
        warn(Unbounded, f"R_{name[1].upper()}* is not determined: {said}")
    return fitted


def _base(base: Any) -> dict[str, float]:
    if base is None:
        return {name: float(C4[name]) for name in NAMES}
    given = base if isinstance(base, Mapping) else getattr(base, "parameters", {})
    missing = [name for name in NAMES if name not in given]
    if missing:
        raise ValueError(f"base lacks {', '.join(missing)}; expected a ParametricFit or {', '.join(NAMES)}")
    law = {name: float(given[name]) for name in NAMES}
    for name, value in law.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} of base must be positive and finite, got {value}")
    return law


def _quantities(n: np.ndarray, d: np.ndarray, unique: np.ndarray, law: Mapping[str, float]) -> tuple[np.ndarray, ...]:
    """Unique tokens and their repetitions, warranted parameters and their excess."""
    used = np.minimum(unique, d)
    alpha, beta = law["alpha"], law["beta"]
    g = (alpha * law["A"] / (beta * law["B"])) ** (1 / (alpha + beta))
    warranted = np.minimum(n, g * (used * g) ** (beta / alpha))  # N* of the budget whose D* is `used`
    return used, d / used - 1, warranted, n / warranted - 1


def _log_loss(quantities: tuple[np.ndarray, ...], rd: np.ndarray, rn: np.ndarray, law: Mapping[str, float]) -> Any:
    used, repeats, warranted, excess = quantities
    tokens = used * (1 - rd * np.expm1(-repeats / rd))
    parameters = warranted * (1 - rn * np.expm1(-excess / rn))
    return np.log(law["E"] + law["A"] * parameters ** -law["alpha"] + law["B"] * tokens ** -law["beta"])
