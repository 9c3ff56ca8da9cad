"""Do two scores rank architectures alike? Spearman and Kendall with exact p values, and an interval that is not a joke.

The question behind it: do MAD scores predict compute-optimal perplexity? Published on five architectures, where the
smallest two-sided p value that Kendall's tau can reach is 0.0167 and a bootstrap interval says nothing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mad.scaling.checks import Refused, TooFewRuns, resamples

EXACT = 8  # architectures up to which all 40,320 orders are counted
PERMUTATIONS = 20_000  # beyond
INTERVAL_FROM = 8  # architectures: with fewer the interval's coverage was .85 at best where .95 is promised


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of n architectures.

    Attributes:
        spearman, kendall: rho, and tau-b.
        spearman_p, kendall_p: two-sided, over all orders up to 8 architectures, over 20,000 random ones beyond.
        interval: of Spearman's rho, 95 % of a bootstrap over architectures, and over the seeds within; None below 8,
            and without a bootstrap.
        refused: why there is no interval; None where there is one.
        within: group -> (n, rho) where groups were given.
        across: (groups, rho) of the groups' means.
    """

    n: int
    spearman: float
    kendall: float
    spearman_p: float
    kendall_p: float
    interval: tuple[float, float] | None
    refused: str | None
    within: dict[str, tuple[int, float]]
    across: tuple[int, float] | None


def rank_correlation(
    x: Any, y: Any, *, groups: Sequence[str] | None = None, bootstrap: int = 2000, seed: int = 0
) -> RankCorrelation:  # fmt: skip
    """Correlate the ranks of two scores.

    Args:
        x, y: (architectures,), or (architectures, seeds) of repeated measurements, whose means are ranked.
        groups: the class of each architecture, to look within classes and across them.
        bootstrap: resamples for the interval.

    Raises:
        TooFewRuns: fewer than three architectures. Refused: all scores are the same. ValueError: lengths that differ,
            or a score that is not finite.
    """
    resamples(bootstrap)
    scores = [_scores(name, values) for name, values in (("x", x), ("y", y))]
    n = len(scores[0])
    if len(scores[1]) != n or (groups is not None and len(groups) != n):
        given = [n, len(scores[1])] + ([] if groups is None else [len(groups)])
        raise ValueError(f"expected x, y and groups of one length, got {', '.join(map(str, given))}")
    if n < 3:
        raise TooFewRuns(f"a rank correlation needs at least 3 architectures, got {n}")
    means = [values.mean(1) for values in scores]
    for name, values in zip("xy", means, strict=True):
        if len(np.unique(values)) == 1:
            raise Refused(f"{name} is the same for all {n} architectures: there is no order in it")
    rng = np.random.default_rng(seed)
    rho = float(_pearson(*map(stats.rankdata, means)))
    tau: Any = stats.kendalltau(means[0], means[1])
    p_rho, p_tau = _p_values(means[0], means[1], rng)
    interval, refused = None, f"{n} architectures are too few for an interval; it needs {INTERVAL_FROM}"
    if not bootstrap:
        refused = "no interval without a bootstrap"
    elif n >= INTERVAL_FROM:
        interval, refused = _interval(scores, bootstrap, rng), None
    within: dict[str, tuple[int, float]] = {}
    across = None
    if groups is not None:
        labels = np.asarray(groups, dtype=str)
        names = np.unique(labels)
        for name in names:
            rows = labels == name
            if rows.sum() > 2:
                within[str(name)] = (int(rows.sum()), float(_pearson(*(stats.rankdata(m[rows]) for m in means))))
        if len(names) > 2:
            centers = [np.array([m[labels == name].mean() for name in names]) for m in means]
            across = (len(names), float(_pearson(*map(stats.rankdata, centers))))
    return RankCorrelation(n, rho, float(tau.statistic), p_rho, p_tau, interval, refused, within, across)


def _scores(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):  # texts, or rows of several lengths
        array = np.empty((0, 0))
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.shape[1] or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite numbers, (architectures,) or (architectures, seeds), got {values!r:.80}"
        )
    return array


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where one does not vary."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return (a * b).sum(-1) / np.where(scale > 0, scale, 1)


def _p_values(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Shares of the orders of y that correlate as strongly with x as its own; ties are kept."""
    n = len(x)
    if n <= EXACT:
        orders, own = np.array(list(itertools.permutations(range(n)))), 0
    else:  # with the order itself counted in, no p value is 0
        orders, own = rng.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1), 1
    ranks = stats.rankdata(x), stats.rankdata(y)
    rho = np.abs(_pearson(ranks[0][None], ranks[1][orders]))
    upper = np.triu_indices(n, 1)
    signs = np.sign(x[upper[0]] - x[upper[1]]), np.sign(y[:, None] - y[None, :])
    tau = np.zeros(len(orders))
    for k, (i, j) in enumerate(zip(*upper, strict=True)):
        tau += signs[0][k] * signs[1][orders[:, i], orders[:, j]]
    tau = np.abs(tau)
    real = np.abs(_pearson(*ranks)), abs(float((signs[0] * signs[1][upper]).sum()))
    p = [(own + (v >= r - 1e-9).sum()) / (own + len(orders)) for v, r in zip((rho, tau), real, strict=True)]
    return float(p[0]), float(p[1])


def _interval(scores: list[np.ndarray], times: int, rng: np.random.Generator) -> tuple[float, float]:
    n = len(scores[0])
    rows = rng.integers(n, size=(times, n))
    drawn = []
    for values in scores:
        seeds = rng.integers(values.shape[1], size=(times, n, values.shape[1]))
        drawn.append(stats.rankdata(values[rows[..., None], seeds].mean(-1), axis=1))
    low, high = np.percentile(_pearson(*drawn), [2.5, 97.5])
    return float(low), float(high)
