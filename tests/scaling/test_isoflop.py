"""IsoFLOP profiles: vertices, power laws, the method's own bias, intervals through both stages, and refusals."""

import numpy as np
import pandas as pd
import pytest

from mad.scaling import DuplicatedRuns, Edge, NoInteriorMinimum, NoInterval, NotFinite, TooFewBudgets, fit_isoflop
from mad.scaling.isoflop import budgets, resample_vertices, vertex

COLUMNS = ("compute", "n", "d", "loss")
FIVE = tuple(np.geomspace(1e18, 1e22, 5))
SURFACES = {  # alpha, beta: error of N* in per cent within 2, 4, 8 and 16 times, and of a where the center drifts
    "even": ({"alpha": 0.35, "beta": 0.35}, (0, 0, 0, 0), 0.003),
    "chinchilla": ({"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}, (0.3, 1.3, 3.0, 5.4), -0.001),
    "uneven": ({"alpha": 0.465, "beta": 0.155}, (1.7, 6.9, 16, 30), -0.016),
}


def fit(table, **options):
    return fit_isoflop(*(table[name] for name in COLUMNS), **options)


def best_sizes(compute, truth):
    A, B, _, alpha, beta = truth.values()
    return (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (np.asarray(compute) / 6) ** (beta / (alpha + beta))


@pytest.mark.parametrize("surface", SURFACES)
def test_the_bias_of_a_parabola(profiles, truth, surface):
    parameters, errors, _ = SURFACES[surface]
    for spread, error in zip((2, 4, 8, 16), errors, strict=True):
        fitted = fit(profiles(FIVE, points=15, spread=spread, **parameters))
        factor = np.array([v.n for v in fitted.vertices]) / best_sizes(FIVE, truth | parameters)
        np.testing.assert_allclose(100 * (factor - 1), error, atol=0.5 if error >= 16 else 0.06)
        np.testing.assert_allclose(fitted.bias["n"], factor, rtol=1e-5)  # which is what the fit says of itself
        beta, alpha = (truth | parameters)["beta"], (truth | parameters)["alpha"]
        assert fitted.a == pytest.approx(beta / (alpha + beta), abs=1e-6) and fitted.bias["a"] == pytest.approx(
            0, abs=1e-6
        )
        assert fitted.a + fitted.b == pytest.approx(1)


@pytest.mark.parametrize("surface", SURFACES)
def test_the_bias_of_a_drifting_center(profiles, truth, surface):
    parameters, _, error = SURFACES[surface]
    fitted = fit(profiles(FIVE, points=15, spread=8, center=np.geomspace(1, 3, 5), **parameters))
    both = truth | parameters
    off = fitted.a - both["beta"] / (both["alpha"] + both["beta"])
    assert off == pytest.approx(error, abs=6e-4) and fitted.bias["a"] == pytest.approx(off, abs=1e-5)


def test_a_vertex_is_that_of_polyfit(profiles):
    table = profiles(noise=0.003)
    fitted = fit(table)
    for found, (budget, group) in zip(fitted.vertices, table.groupby("compute"), strict=True):
        curve = np.polyfit(np.log(group["n"]), group["loss"], 2)
        at = -curve[1] / (2 * curve[0])
        assert (found.compute, np.log(found.n)) == pytest.approx((budget, at), rel=1e-6)
        assert found.loss == pytest.approx(np.polyval(curve, at), rel=1e-6)
        assert found.curvature == pytest.approx(2 * curve[0], rel=1e-6) and found.parabola == pytest.approx(
            curve, rel=1e-6
        )
        assert 6 * found.n * found.d == pytest.approx(budget) and found.reason is None and found.intervals == {}
    slope = np.polyfit(np.log([v.compute for v in fitted.used]), np.log([v.n for v in fitted.used]), 1)[0]
    assert fitted.a == pytest.approx(slope) and fitted.intervals == {
        "a": fitted.n_law.interval,
        "b": fitted.d_law.interval,
    }


def test_an_optimum_by_the_laws(profiles):
    fitted = fit(profiles())
    at = fitted.used[1]
    best = fitted.optimum(at.compute)
    assert (best.n, best.d) == pytest.approx((at.n, at.d), rel=1e-2) and best.loss == pytest.approx(at.loss)
    assert np.isnan(fitted.optimum(1e25).loss) and fitted.optimum([1e25, 1e26]).n.shape == (2,)


def test_budgets_within_a_tenth_are_one():
    groups = budgets(np.array([5.0, 1.0, 1.09, 1.23, 5.4, 1.11]))
    assert [sorted(rows.tolist()) for rows in groups] == [[1, 2, 5], [3], [0, 4]]
    assert len(budgets(np.array([1.0, 1.09]), same=0.05)) == 2


@pytest.mark.parametrize("wander", [0.02, 0.1])
def test_budgets_that_are_not_quite_met(profiles, wander):
    table = profiles(noise=0.002)
    loose = table.assign(
        compute=table["compute"] * np.random.default_rng(0).uniform(1 - wander, 1 + wander, len(table))
    )
    assert len(fit(loose).vertices) == 4 and fit(loose).a == pytest.approx(fit(table).a, abs=0.01)


def test_evenly_spread_compute_does_not_become_one_budget():
    compute = np.geomspace(1e18, 1e20, 200)
    assert all(np.ptp(np.log(compute[rows])) <= np.log(1.25) for rows in budgets(compute))
    assert len(budgets(compute)) == 20 and sum(map(len, budgets(compute))) == 200


def test_a_budget_without_a_vertex_is_left_out_and_said(profiles, truth):
    table = profiles(FIVE)
    edge = table["n"] < best_sizes(FIVE, truth)[2]
    low = table[(table["compute"] != FIVE[2]) | edge]
    with pytest.warns(Edge, match="1e.20 FLOPs.*lies above the largest model trained"):
        fitted = fit(low)
    assert [v.reason is None for v in fitted.vertices] == [True, True, False, True, True] and len(fitted.used) == 4
    assert fitted.a == pytest.approx(fit(table).a, abs=1e-3) and len(fitted.bias["n"]) == 4
    down = table.assign(loss=np.where(table["compute"] == FIVE[0], 9 - table["loss"], table["loss"]))
    with pytest.warns(Edge, match="1e.18 FLOPs.*opens downward"):
        assert fit(down).vertices[0].reason == "its parabola opens downward"
    two = table[(table["compute"] != FIVE[4]) | (table.groupby("compute").cumcount() < 2)]
    with pytest.warns(Edge, match="1e.22 FLOPs.*it has 2 sizes, a parabola needs 3"):
        assert np.isnan(fit(two).vertices[4].n)


def test_a_side_is_named(profiles):
    table = profiles((1e18,))
    up = table[table["n"] > table["n"].median()]
    arrays = [up[name].to_numpy() for name in COLUMNS]
    assert "lies below the smallest model trained" in vertex(*arrays, np.arange(len(up))).reason


def test_what_is_refused(profiles):
    with pytest.raises(
        TooFewBudgets, match=r"at least 3 budgets, got 2: 1e\+18, 1e\+19 FLOPs \(budgets within 10% count"
    ):
        fit(profiles((1e18, 1e19)))
    with pytest.raises(
        NoInteriorMinimum, match="0 of 4 budgets have a minimum inside, 3 must: 1e.18 FLOPs: its parabola"
    ):
        table = profiles()
        fit(table.assign(loss=9 - table["loss"]))
    with pytest.raises(NoInteriorMinimum, match="1e.18 FLOPs: its loss is the same at all sizes"):
        fit(table.assign(loss=2.0))
    with pytest.raises(NotFinite, match="compute must be positive"):
        fit(profiles().assign(compute=0))
    with pytest.raises(ValueError, match="bootstrap must be 0"):
        fit(profiles(), bootstrap=1)
    with pytest.warns(DuplicatedRuns, match="36 rows repeat"):
        fit(pd.concat([profiles(), profiles()]))


def test_a_bootstrap_goes_through_both_stages(profiles):
    fitted = fit(profiles(noise=0.003), bootstrap=200)
    assert fitted.intervals["a"][0] < fitted.a < fitted.intervals["a"][1] and fitted.failed < 0.05
    assert fitted.intervals["a"] == pytest.approx(np.percentile(fitted.n_law.samples[:, 2], [2.5, 97.5]))
    assert fitted.intervals["b"] == pytest.approx([1 - end for end in fitted.intervals["a"][::-1]])
    for found in fitted.used:
        for name in ("n", "d", "loss"):
            low, high = found.intervals[name]
            assert low < getattr(found, name) < high
    again = fit(profiles(noise=0.003), bootstrap=200)
    assert (again.n_law.samples == fitted.n_law.samples).all() and again.a == fit(profiles(noise=0.003)).a


def test_each_resampled_vertex_is_polyfits(profiles):
    table = profiles((1e18,), noise=0.02, points=6, spread=4)
    arrays, rows = [table[name].to_numpy() for name in COLUMNS], np.arange(6)
    drawn = resample_vertices(*arrays, rows, 300, np.random.default_rng(5))
    counts = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=300)
    lost = 0
    for sample, count in zip(drawn, counts, strict=True):
        x, y = (np.repeat(v, count) for v in (np.log(arrays[1]), arrays[3]))
        if len(np.unique(x)) >= 3:
            curve = np.polyfit(x, y, 2)
            at = -curve[1] / (2 * curve[0])
            if curve[0] > 0 and np.log(arrays[1].min()) < at < np.log(arrays[1].max()):
                d = np.log(1e18 / 6) - at
                np.testing.assert_allclose(sample, [at, d, np.log(np.polyval(curve, at))], rtol=1e-6)
                continue
        assert np.isnan(sample).all()
        lost += 1
    assert 0 < lost < 200


def test_no_interval_from_resamples_that_mostly_fail(profiles):
    """Of three sizes a resample rarely has all three."""
    table = profiles((1e18, 1e19, 1e20), points=3, noise=0.001)
    with pytest.warns(
        NoInterval, match=r"no intervals: \d+% of the resamples have no minimum inside at 3 budgets; train"
    ):
        fitted = fit(table, bootstrap=100)
    assert np.isnan(fitted.intervals["a"]).all() and np.isnan(fitted.n_law.standard_error) and fitted.failed > 0.9
    assert fitted.a == fit(table).a and fitted.used[0].intervals == {}


def test_no_bias_where_there_is_no_parametric_law(profiles):
    """The loss rises with the budget."""
    n = np.tile(np.geomspace(1e7, 1e9, 5), 3)
    compute = np.repeat([1e18, 1e19, 1e20], 5)
    loss = 2 + 0.01 * np.log(n / 1e8) ** 2 + 0.2 * np.log10(compute / 1e18)
    fitted = fit_isoflop(compute, n, compute / (6 * n), loss)
    assert fitted.bias is None and fitted.parametric is None and fitted.a == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say(profiles, truth):
    """With five runs a budget, resamples scatter twice as much as new runs would, and cover too often."""
    exponent, covered = truth["beta"] / (truth["alpha"] + truth["beta"]), 0
    for seed in range(200):
        table = profiles(FIVE, noise=0.004, points=15, spread=4, seed=seed)
        low, high = fit(table, bootstrap=200).intervals["a"]
        covered += low <= exponent <= high
    assert 0.89 <= covered / 200 <= 0.985, covered / 200
