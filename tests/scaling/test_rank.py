"""Rank correlations: p values counted over all orders, an interval from eight architectures on, ties, seeds, groups."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mad.scaling import TooFewRuns, rank_correlation


def by_hand(x, y):
    """Two-sided p values of Spearman and Kendall, order by order."""
    orders = [np.array(order) for order in itertools.permutations(y)]
    counted = []
    for statistic in (stats.spearmanr, stats.kendalltau):
        real = abs(statistic(x, y).statistic)
        counted.append(np.mean([abs(statistic(x, order).statistic) >= real - 1e-9 for order in orders]))
    return tuple(counted)


def test_the_smallest_p_value_of_five():
    found = rank_correlation([1, 2, 3, 4, 5], [9, 7, 6, 2, 1])
    assert (found.n, found.spearman, found.kendall) == (5, pytest.approx(-1), pytest.approx(-1))
    assert found.kendall_p == found.spearman_p == 1 / 60
    assert found.interval is None and found.refused == "5 architectures are too few for an interval; it needs 8"


@pytest.mark.parametrize("seed", range(3))
def test_p_values_are_shares_of_all_orders(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 6))
    found = rank_correlation(x, y)
    assert (found.spearman_p, found.kendall_p) == pytest.approx(by_hand(x, y))
    assert found.kendall_p == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue)


def test_ties_share_their_ranks():
    x, y = [1, 2, 2, 4, 5], [3, 3, 1, 5, 5]
    found = rank_correlation(x, y)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert (found.spearman_p, found.kendall_p) == pytest.approx(by_hand(x, y))


def test_beyond_eight_orders_are_drawn():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(12)
    y = x + 1.5 * rng.standard_normal(12)
    found = rank_correlation(x, y, bootstrap=50)
    exact = stats.kendalltau(x, y, method="exact").pvalue
    assert 0 < found.kendall_p and found.kendall_p == pytest.approx(exact, abs=4 * (exact / 20_000) ** 0.5)
    assert rank_correlation(x, x, bootstrap=50).kendall_p == pytest.approx(1 / 20_001)
    assert rank_correlation(x, y, seed=1, bootstrap=50) == rank_correlation(x, y, seed=1, bootstrap=50)


def test_an_interval_needs_eight():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 8))
    assert rank_correlation(x[:7], y[:7]).interval is None
    found = rank_correlation(x, x + 0.5 * y)
    low, high = found.interval
    assert -1 <= low < found.spearman < high <= 1 and found.refused is None
    found = rank_correlation(range(9), range(9), bootstrap=0)
    assert found.interval is None and found.refused == "no interval without a bootstrap"


def test_seeds_are_averaged_and_widen_the_interval():
    rng = np.random.default_rng(3)
    truth = np.arange(20.0)
    x = truth[:, None] + 8 * rng.standard_normal((20, 4))
    found = rank_correlation(x, truth)
    assert found.spearman == pytest.approx(stats.spearmanr(x.mean(1), truth).statistic)
    averaged = rank_correlation(x.mean(1), truth)
    assert found.spearman == averaged.spearman
    assert found.interval[0] < averaged.interval[0]


def test_within_groups_and_across_them():
    """Within each class more is worse, across the classes more is better."""
    x, y = [1, 2, 3, 11, 12, 13, 21, 22, 23, 31], [3, 2, 1, 13, 12, 11, 23, 22, 21, 40]
    found = rank_correlation(x, y, groups=["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"], bootstrap=50)
    assert found.within == {name: (3, pytest.approx(-1)) for name in "abc"}
    assert found.across == (4, pytest.approx(1)) and found.spearman > 0.8
    assert rank_correlation(x, y, bootstrap=50).within == {}
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 4], groups=["a", "a", "b", "b"]).across is None


@pytest.mark.parametrize(
    ("x", "y", "groups", "kind", "message"),
    [
        ([1, 2], [1, 2], None, TooFewRuns, "needs at least 3 architectures, got 2"),
        ([1, 2, 3], [1, 2], None, ValueError, "x, y and groups of one length, got 3, 2$"),
        ([1, 2, 3], [1, 2, 3], np.array(["a", "b"]), ValueError, "x, y and groups of one length, got 3, 3, 2$"),
        ([1, 2, np.nan], [1, 2, 3], None, ValueError, "x must be finite numbers"),
        ([1, 2, 3], np.ones((3, 2, 2)), None, ValueError, r"y must be finite numbers, \(architectures,\) or \(arch"),
        ([[1, 2], [3], [4, 5]], [1, 2, 3], None, ValueError, "x must be finite numbers"),
        ([1, 2, 3], [2, 2, 2], None, ValueError, "y is the same for all 3 architectures: there is no order in it"),
    ],
)
def test_what_is_refused(x, y, groups, kind, message):
    with pytest.raises(kind, match=message):
        rank_correlation(x, y, groups=groups)


def test_the_five_published_points_say_little(shared):
    table = pd.read_csv(shared / "mad_figure_digitised.csv")
    found = rank_correlation(table["mad_mean_acc"], table["compute_opt_ppl_pile"])
    assert found.spearman == pytest.approx(-1) and found.kendall_p == pytest.approx(0.0167, abs=1e-4)
    assert found.interval is None


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 12])
def test_intervals_cover_the_truth_as_often_as_they_say(n):
    """Spearman's rho of a normal pair of correlation r is 6 / pi asin(r / 2)."""
    truth, rng, covered = 6 / np.pi * np.arcsin(0.4), np.random.default_rng(n), 0
    for k in range(400):
        x, z = rng.standard_normal((2, n))
        low, high = rank_correlation(x, 0.8 * x + 0.6 * z, bootstrap=400, seed=k).interval
        covered += low <= truth <= high
    assert 0.9 <= covered / 400 <= 0.995, covered
