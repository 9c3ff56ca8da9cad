"""The envelope of training curves (Hoffmann et al. 2022, arXiv 2203.15556, approach 1): the best run by compute.

Where the best run is of the smallest or the largest model that was trained for that compute, a smaller or a larger one
might be better still: as with the minima of IsoFLOP profiles at an edge, such budgets are left out of the fit.
"""

from dataclasses import dataclass

import numpy as np

from mad.scaling.checks import MOST_FAILED, Edge, NoInterval, TooFewRuns, positive, resamples, warn
from mad.scaling.power import Exponents, PowerLaw, fit_power_law
from mad.scaling.table import Frame

RUNS = 3  # at least
SAME = 1e-9  # of ln n: one size
SIZES = 3  # that are best somewhere inside, at least: the slope of k equal steps is 1 - 1/k^2 of what they follow


@dataclass(frozen=True)
class EnvelopeFit(Exponents):
    """N* and D* of the runs that are best at each compute.

    Attributes:
        compute, n, d, loss: the envelope, at budgets evenly spaced in the logarithm, without those left out.
        n_law, d_law: power laws through it, with the intervals of a bootstrap over runs, if any.
        span: first and last compute of these; the exponents depend on it.
        winners: how many runs they are of. Its points are not independent, these are.
    """

    compute: np.ndarray
    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    n_law: PowerLaw
    d_law: PowerLaw
    span: tuple[float, float]
    winners: int


def fit_envelope(
    curves: Frame,
    *,
    span: tuple[float, float] | None = None,
    budgets: int = 1500,
    smooth: float = 0.0,
    bootstrap: int = 0,
    seed: int = 0,
) -> EnvelopeFit:
    """Fit the envelope of training curves.

    Args:
        curves: a row a checkpoint; columns run, n, d, loss, and compute (6 n d where there is none).
        span: compute to use; None: from where three runs are there to where two are.
        budgets: points of the envelope.
        smooth: width (standard deviation, in checkpoints) of a Gaussian over each curve's loss; 0: none.
        bootstrap: resamples of the runs.

    Raises:
        TooFewRuns: fewer than three runs, or sizes that win inside, or runs that never overlap. ValueError: a
            column is missing, or the span is empty.
    """
    resamples(bootstrap)
    for column in ("run", "n", "d", "loss"):
        if column not in curves:
            raise ValueError(f"curves need the columns run, n, d and loss, got {', '.join(map(str, curves))}")
    if span and not 0 < span[0] < span[1] < np.inf:
        raise ValueError(f"the span must go from a positive number of FLOPs to a larger one, got {span}")
    n, d, loss = positive(n=curves["n"], d=curves["d"], loss=curves["loss"])
    if not len(n):
        raise TooFewRuns(f"an envelope needs at least {RUNS} runs, got none")
    compute = positive(compute=curves["compute"])[0] if "compute" in curves else 6 * n * d
    run = np.unique(curves["run"].astype(str), return_inverse=True)[1]
    names = np.arange(run.max() + 1)
    if len(names) < RUNS:
        raise TooFewRuns(f"an envelope needs at least {RUNS} runs, got {len(names)}")
    log_c = np.log(compute)
    first, last = (np.array([f(log_c[run == r]) for r in names]) for f in (np.min, np.max))
    low, high = np.log(span) if span else (np.sort(first)[RUNS - 1], np.sort(last)[-2])
    if not low < high:
        raise TooFewRuns("the runs overlap at no compute: there is none from where three are there to where two are")
    grid = np.linspace(low, high, budgets)
    losses, tokens = np.full((2, len(names), budgets), np.inf)
    for r in names:
        rows = np.flatnonzero(run == r)
        rows = rows[np.argsort(log_c[rows], kind="stable")]
        curve = _smooth(np.log(loss[rows]), smooth)
        losses[r] = np.interp(grid, log_c[rows], curve, left=np.inf, right=np.inf)
        tokens[r] = np.interp(grid, log_c[rows], np.log(d[rows]))
    size = np.array([np.log(n[run == r]).mean() for r in names])

    def best(kept: np.ndarray):
        """Of these runs: the best at each budget, ln n and ln d there, and where there is any, and one inside."""
        winner, at = kept[np.argmin(losses[kept], 0)], np.arange(budgets)
        there = np.isfinite(losses[kept])
        small, large = (f(np.where(there, size[kept, None], k * np.inf), 0) for f, k in ((np.min, 1), (np.max, -1)))
        inside = (small + SAME < size[winner]) & (size[winner] < large - SAME)
        return winner, size[winner], tokens[winner, at], there.any(0), inside

    winner, best_n, best_d, there, inside = best(names)
    if not there.any():
        raise TooFewRuns(f"no run was trained for {np.exp(low):.3g} to {np.exp(high):.3g} FLOPs")
    sizes, left = _sizes(best_n[inside]), int((there & ~inside).sum())
    if sizes < SIZES:
        raise TooFewRuns(
            f"an envelope needs {SIZES} sizes that are the best at some compute, for which a smaller and a larger one "
            f"were trained too, got {sizes}"
        )
    if left:
        warn(
            Edge,
            f"{left} of {there.sum()} budgets are left out of the envelope: the best model is the smallest or the "
            "largest that was trained for them",
        )
    rng, slopes = np.random.default_rng(seed), []
    for _ in range(bootstrap):
        _, log_n, log_d, _, ok = best(np.unique(rng.integers(len(names), size=len(names))))
        if _sizes(log_n[ok]) >= SIZES:
            slopes.append(np.polyfit(grid[ok], np.stack([log_n[ok], log_d[ok]], 1), 1)[0])
    if len(slopes) < (1 - MOST_FAILED) * bootstrap:
        warn(
            NoInterval,
            f"no interval: in {1 - len(slopes) / bootstrap:.0%} of the resamples fewer than {SIZES} sizes are best at "
            "some compute; train more sizes",
        )
        slopes = []
    x = np.exp(grid[inside])
    n_law, d_law = (
        _with_interval(fit_power_law(x, np.exp(y[inside])), [s[i] for s in slopes])
        for i, y in enumerate((best_n, best_d))
    )
    least = np.exp(losses[winner, np.arange(budgets)][inside])
    return EnvelopeFit(
        x, np.exp(best_n[inside]), np.exp(best_d[inside]), least, n_law, d_law,
        (float(x[0]), float(x[-1])), len(np.unique(winner[inside])),
    )  # fmt: skip


def _sizes(log_n: np.ndarray) -> int:
    return int((np.diff(np.sort(log_n)) > SAME).sum()) + (len(log_n) > 0)


def _with_interval(law: PowerLaw, exponents: list[float]) -> PowerLaw:
    """Student's interval takes 1500 points for independent: without a bootstrap there is none."""
    if len(exponents) < 2:
        return PowerLaw(**{**vars(law), "standard_error": np.nan, "interval": (np.nan, np.nan)})
    low, high = np.percentile(exponents, [2.5, 97.5]).tolist()
    return PowerLaw(**{**vars(law), "standard_error": float(np.std(exponents, ddof=1)), "interval": (low, high)})


def _smooth(values: np.ndarray, width: float) -> np.ndarray:
    if width <= 0:
        return values
    reach = min(int(4 * width) + 1, len(values) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total, weight = (np.convolve(v, kernel)[reach : reach + len(values)] for v in (values, np.ones_like(values)))
    return total / weight
