"""Perplexity against state size: the known slope, classes, the F-test, the floor, the frontier, and the bootstrap."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mad.scaling import Edge, NoInteriorMinimum, NoInterval, NotFinite, Refused, fit_state_optimal
from mad.scaling.state import _frontier

SLOPE = -0.28
BUDGETS = (1e18, 4e18, 1.6e19, 6.4e19, 2.56e20)


def table(classes=None, floor=0.0, noise=0.0, seed=0, points=7, budgets=BUDGETS):
    """At every budget a parabola in ln n, exact, whose vertex lies on P* = floor + exp(intercept) M^slope."""
    rng, frames = np.random.default_rng(seed), []
    for name, (intercept, slope) in (classes or {"a": (5.0, SLOPE), "b": (5.5, SLOPE), "c": (6.0, SLOPE)}).items():
        for budget in budgets:
            best = (budget / 120) ** 0.5
            n = best * np.geomspace(1 / 4, 4, points)
            state = 0.5 * n**0.6
            lowest = np.log(floor + np.exp(intercept) * (0.5 * best**0.6) ** slope)
            loss = lowest + 0.05 * np.log(n / best) ** 2 + noise * rng.standard_normal(points)
            frames.append(
                pd.DataFrame({"arch": name, "n": n, "d": budget / (6 * n), "loss": loss, "state_size": state})
            )
    return pd.concat(frames, ignore_index=True)


def test_a_known_law_is_found():
    fitted = fit_state_optimal(table())
    assert fitted.slope == pytest.approx(SLOPE, abs=1e-9)
    assert fitted.intercepts == pytest.approx({"a": 5.0, "b": 5.5, "c": 6.0}, abs=1e-7)
    assert fitted.slopes == pytest.approx(dict.fromkeys("abc", SLOPE), abs=1e-9)
    assert fitted.interval == pytest.approx((SLOPE, SLOPE), abs=1e-8)
    assert fitted.predict("b", 1000.0) == pytest.approx(np.exp(5.5) * 1000**SLOPE)
    points = fitted.points
    assert len(points) == 15 and set(points["class"]) == set("abc")
    best = (points["compute"] / 120) ** 0.5
    np.testing.assert_allclose(points["n"], best, rtol=1e-7)
    np.testing.assert_allclose(points["state_size"], 0.5 * best**0.6, rtol=1e-7)
    np.testing.assert_allclose(points["perplexity"], np.exp(points["loss"]))
    assert points["frontier"].tolist() == [True] * 5 + [False] * 10  # a has the least state for any perplexity


def test_slope_interval_and_f_are_those_of_dummy_regressions():
    fitted = fit_state_optimal(table(noise=0.01))
    x, y = np.log(fitted.points["state_size"]), fitted.points["loss"]
    dummies = np.stack([fitted.points["class"] == name for name in "abc"], 1).astype(float)
    designs = np.column_stack([dummies, x]), np.column_stack([dummies, dummies * np.asarray(x)[:, None]])
    (one, rest, *_), (each, apart, *_) = (np.linalg.lstsq(design, y) for design in designs)
    assert fitted.slope == pytest.approx(one[3]) and list(fitted.intercepts.values()) == pytest.approx(list(one[:3]))
    assert list(fitted.slopes.values()) == pytest.approx(list(each[3:]))
    f = (rest[0] - apart[0]) / 2 / (apart[0] / 9)
    assert (fitted.f, fitted.p) == pytest.approx((f, stats.f.sf(f, 2, 9)))
    error = (rest[0] / 11 * np.linalg.inv(designs[0].T @ designs[0])[3, 3]) ** 0.5
    half = stats.t.ppf(0.975, 11) * error
    assert fitted.interval == pytest.approx((one[3] - half, one[3] + half))


def test_slopes_that_differ_are_told_from_slopes_that_do_not():
    same = fit_state_optimal(table(noise=0.003))
    other = fit_state_optimal(table({"a": (5.0, -0.28), "b": (5.5, -0.2), "c": (6.0, -0.28)}, noise=0.003))
    assert same.p > 0.05 > 1e-3 > other.p and other.slopes["b"] == pytest.approx(-0.2, abs=0.03)


def test_two_stages_of_noise_are_in_the_bootstrap():
    fitted = fit_state_optimal(table(noise=0.01), bootstrap=100, seed=2)
    assert fitted.samples.shape == (100,) and fitted.interval == pytest.approx(
        np.percentile(fitted.samples, [2.5, 97.5])
    )
    assert fitted.interval[0] < fitted.slope < fitted.interval[1]
    assert (fitted.samples == fit_state_optimal(table(noise=0.01), bootstrap=100, seed=2).samples).all()
    louder = fit_state_optimal(table(noise=0.03), bootstrap=100).samples.std()
    assert louder > 2 * fit_state_optimal(table(noise=0.005), bootstrap=100).samples.std()


def test_three_budgets_of_one_class_have_an_interval():
    fitted = fit_state_optimal(table({"a": (5.0, SLOPE)}, noise=0.005, budgets=BUDGETS[:3]), bootstrap=100)
    assert len(fitted.samples) > 90 and fitted.interval[0] < fitted.slope < fitted.interval[1]
    assert np.isnan(fitted.f) and np.isnan(fitted.p)


def test_no_interval_from_resamples_that_mostly_fail():
    few = table({"a": (5.0, SLOPE)}, budgets=BUDGETS[:3], points=3)
    with pytest.warns(NoInterval, match=r"no interval: \d+% of the resamples have fewer than 3 points with a minimum"):
        fitted = fit_state_optimal(few, bootstrap=50)
    assert np.isnan(fitted.interval).all() and fitted.slope == pytest.approx(SLOPE)


def test_a_floor_is_found_and_predicts_better():
    fitted = fit_state_optimal(table(floor=4.0))
    assert fitted.floor["floor"] == pytest.approx(4.0, rel=0.02)
    assert fitted.floor["exponent"] == pytest.approx(SLOPE, rel=0.03)
    assert fitted.floor["error"] < 0.2 * fitted.floor["error_without"]
    plain = fit_state_optimal(table())
    assert plain.floor["floor"] == 0 and plain.floor["error_without"] < 1e-8
    assert plain.floor["exponent"] == pytest.approx(SLOPE, abs=1e-8)


def test_the_floors_error_is_of_points_it_never_saw():
    """Not even their range: the floor that the smaller budgets tell may lie above what the largest reaches."""
    given = table({"a": (5.0, SLOPE), "b": (5.5, SLOPE)}, floor=8.0)
    given.loc[6 * given["n"] * given["d"] > 2e20, "loss"] -= 1.5
    fitted = fit_state_optimal(given)
    assert fitted.points["perplexity"].min() < 8.0 and fitted.floor["error"] == pytest.approx(1.5, abs=1e-3)


def test_no_floor_where_the_largest_budget_is_of_a_class_of_its_own():
    rows = pd.concat([table({"a": (5.0, SLOPE)}), table({"b": (5.5, SLOPE)}, budgets=(1e22,))])
    assert fit_state_optimal(rows).floor is None
    assert fit_state_optimal(table({"a": (5.0, SLOPE)}, budgets=BUDGETS[:3])).floor is None


def test_sequence_length_makes_classes():
    short, long = table(), table({name: (c - 0.2, SLOPE) for name, c in (("a", 5.0), ("b", 5.5), ("c", 6.0))})
    both = pd.concat([short.assign(seq_len=128), long.assign(seq_len=2048)])
    fitted = fit_state_optimal(both)
    assert fitted.slope == pytest.approx(SLOPE, abs=1e-8) and len(fitted.points) == 30
    assert fitted.intercepts["a at 128 tokens"] == pytest.approx(5.0, abs=1e-6)
    assert fitted.intercepts["a at 2048 tokens"] == pytest.approx(4.8, abs=1e-6)
    assert set(fitted.points["seq_len"]) == {128.0, 2048.0}
    some = fit_state_optimal(pd.concat([both, short.assign(seq_len=np.nan)]))
    assert len(some.points) == 45 and some.intercepts["a at an unknown length"] == pytest.approx(5.0, abs=1e-6)
    one = fit_state_optimal(short.assign(seq_len=128))
    assert set(one.intercepts) == set("abc") and (one.points["seq_len"] == 128).all()


def test_other_column_names():
    renamed = table().rename(columns={"n": "params", "d": "tokens", "state_size": "M", "arch": "Architecture"})
    assert fit_state_optimal(renamed).slope == pytest.approx(SLOPE, abs=1e-8)


def test_the_frontier_is_what_nothing_beats_in_both():
    state, loss = np.random.default_rng(0).uniform(size=(2, 40))
    state[5], loss[6] = state[4], loss[3]
    for i, kept in enumerate(_frontier(state, loss)):
        beaten = any(
            state[j] <= state[i] and loss[j] <= loss[i] and (state[j] < state[i] or loss[j] < loss[i])
            for j in range(40)
        )
        assert kept == (not beaten)


def test_a_budget_without_a_vertex_is_left_out_and_said():
    given = table()
    odd = (given["arch"] == "b") & (6 * given["n"] * given["d"] < 2e18)
    given.loc[odd, "loss"] = 9 - given.loc[odd, "loss"]
    with pytest.warns(Edge, match="of b .*1e.18 FLOPs.*opens downward"):
        fitted = fit_state_optimal(given)
    assert len(fitted.points) == 14 and fitted.slope == pytest.approx(SLOPE, abs=1e-8)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda t: t.drop(columns="state_size"), ValueError, "needs the column state_size; the table has arch, n, d"),
        (
            lambda t: t.assign(state_size=t["state_size"].where(t.index > 3, 0)),
            NotFinite,
            "must be positive in every row",
        ),
        (
            lambda t: t.assign(state_size=t["state_size"].where(t.index > 3)),
            NotFinite,
            "in 4 of 105 it is not .architecture a.; ",
        ),
        (lambda t: t.assign(loss=t["loss"] + 700), Refused, "a loss of 70.* has no perplexity"),
        (lambda t: t.assign(state_size=4096), Refused, "the state size is the same at every budget of each"),
        (lambda t: t[(t["arch"] == "a") & (t["n"] * t["d"] < 1e18)], NoInteriorMinimum, "with a minimum inside, got 2"),
    ],
)
def test_what_is_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        fit_state_optimal(change(table()))


def test_an_odd_number_of_resamples_is_refused():
    with pytest.raises(ValueError, match="bootstrap must be 0, for none"):
        fit_state_optimal(table(), bootstrap=-1)


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    """With half as many runs a budget, resamples scatter twice as much as new runs would, and cover too often."""
    covered = 0
    for seed in range(150):
        low, high = fit_state_optimal(table(noise=0.01, seed=seed, points=15), bootstrap=200).interval
        covered += low <= SLOPE <= high
    assert 0.88 <= covered / 150 <= 0.99, covered / 150
