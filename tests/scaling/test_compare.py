"""Two architectures at a budget: loss difference and compute multiplier, known and with intervals; and hold-outs."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from mad.scaling import Extrapolation, TooFewBudgets, TooFewRuns, compare, fit_parametric, holdout
from mad.scaling.compare import _measure
from mad.scaling.parametric import optimum


@pytest.fixture
def pair(scattered):
    """Two architectures; b's law is a's after `times` the compute, its n and d both stretched."""

    def make(times=1.5, noise=0.0, seed=0, **parameters):
        stretch = times**0.5
        a = scattered(noise=noise, seed=2 * seed)
        b = scattered(noise=noise, seed=2 * seed + 1, A=480 * stretch**0.35, B=2100 * stretch**0.37, **parameters)
        return pd.concat([a.assign(arch="a"), b.assign(arch="b")], ignore_index=True)

    return make


def test_a_known_multiplier_is_found(pair):
    for times in (1.5, 4.0):
        for budget in (1e19, 1e21):
            found = compare(pair(times), "a", "b", budget, bootstrap=0)
            assert (
                found.multiplier == pytest.approx(times, rel=1e-5) and found.difference < 0 and found.extrapolated == 1
            )
            assert found.difference == pytest.approx(found.loss_a - found.loss_b)
            back = compare(pair(times), "b", "a", budget, bootstrap=0)
            assert back.multiplier == pytest.approx(1 / times, rel=1e-5) and back.difference == pytest.approx(
                -found.difference
            )
            assert np.isnan(found.difference_interval).all() and np.isnan(found.multiplier_interval).all()


def test_the_multiplier_is_where_the_other_law_reaches_the_loss(pair):
    table = pair(1.5, noise=0.01, E=1.7)
    a, b = (fit_parametric(*(table.loc[table["arch"] == name, c] for c in ("n", "d", "loss"))) for name in "ab")
    found = compare(table, "a", "b", 1e20, bootstrap=0)
    assert (found.loss_a, found.loss_b) == pytest.approx((a.optimum(1e20).loss, b.optimum(1e20).loss))
    budget = optimize.brentq(lambda log_c: b.optimum(np.exp(log_c)).loss - found.loss_a, 20, 100, xtol=1e-12)
    assert found.multiplier == pytest.approx(np.exp(budget) / 1e20, rel=1e-6)


def test_what_an_architecture_cannot_reach_takes_infinite_compute(pair):
    found = compare(pair(1.0, E=4.0), "a", "b", 1e21, bootstrap=0)
    assert found.multiplier == np.inf and found.difference < -2


def test_a_loss_just_above_the_others_floor_takes_more_compute_than_a_float_holds():
    a = np.array([[480, 2100, 1.8, 0.35, 0.37]])
    b = np.array([[480, 2100, optimum(a, 1e21).loss[0] - 1e-9, 0.35, 0.02]])
    assert _measure([a, b], [6.0, 6.0], 1e21)[1][0] == np.inf


def test_flops_of_their_own_are_used(pair):
    """b spends twice the FLOPs on each parameter and token, so it needs twice the compute."""
    table = pair(1.0)
    table["compute"] = 6 * table["n"] * table["d"] * np.where(table["arch"] == "b", 2, 1)
    assert compare(table, "a", "b", 1e20, bootstrap=0).multiplier == pytest.approx(2, rel=1e-5)


def test_a_joint_bootstrap(pair):
    table = pair(1.5, noise=0.01)
    found = compare(table, "a", "b", 1e20, bootstrap=100)
    assert found.difference_interval[0] < found.difference < found.difference_interval[1]
    assert found.multiplier_interval[0] < found.multiplier < found.multiplier_interval[1]
    assert (
        found == compare(table, "a", "b", 1e20, bootstrap=100) != compare(table, "a", "b", 1e20, bootstrap=100, seed=1)
    )
    fits = [
        fit_parametric(*(table.loc[table["arch"] == name, c] for c in ("n", "d", "loss")), bootstrap=100, seed=k)
        for k, name in enumerate("ab")
    ]
    losses = [optimum(f.samples, 1e20).loss for f in fits]
    wanted = np.percentile(losses[0] - losses[1], [2.5, 97.5], method="nearest")
    assert found.difference_interval == pytest.approx(tuple(wanted))


def test_checkpoints_are_resampled_by_their_runs(scattered):
    rows = []
    for k, n in enumerate(np.geomspace(1e7, 1e10, 10)):
        d = np.geomspace(1e9, 1e11, 12)
        luck = np.exp(0.01 * np.random.default_rng(k).standard_normal())
        rows.append(
            pd.DataFrame({"run": f"r{k}", "n": n, "d": d, "loss": luck * (1.8 + 480 / n**0.35 + 2100 / d**0.37)})
        )
    a = pd.concat(rows)
    table = pd.concat([a.assign(arch="a"), a.assign(arch="b", run="x" + a["run"])], ignore_index=True)
    by_run = compare(table, "a", "b", 1e20, bootstrap=60)
    with pytest.warns(match="look like|fall all along|falls all along"):
        by_row = compare(table.drop(columns="run"), "a", "b", 1e20, bootstrap=60)
    assert np.ptp(by_run.difference_interval) > 1.5 * np.ptp(by_row.difference_interval)


def test_beyond_the_largest_common_budget_is_said(pair):
    table = pair()
    largest = (6 * table["n"] * table["d"]).groupby(table["arch"]).max().min()
    with pytest.warns(Extrapolation, match=r"is 10 times the largest budget at which both were trained"):
        assert compare(table, "a", "b", 10 * largest, bootstrap=0).extrapolated == pytest.approx(10)


def test_below_the_smallest_common_budget_is_said(pair):
    table = pair()
    smallest = (6 * table["n"] * table["d"]).groupby(table["arch"]).min().max()
    with pytest.warns(Extrapolation, match=r"is 0.1 times the smallest budget at which both were trained"):
        assert compare(table, "a", "b", smallest / 10, bootstrap=0).extrapolated == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", Extrapolation)
        compare(table, "a", "b", smallest / 1.005, bootstrap=0)


@pytest.mark.parametrize(
    ("names", "budget", "kind", "message"),
    [
        (("a", "hyenna"), 1e20, ValueError, "no runs of 'hyenna'.*; the table has: a, b"),
        (("a", "b"), 0, ValueError, "at_compute must be positive and finite, got 0"),
        (("a", "b"), np.nan, ValueError, "at_compute must be positive and finite, got nan"),
    ],
)
def test_what_is_refused(pair, names, budget, kind, message):
    with pytest.raises(kind, match=message):
        compare(pair(), *names, budget)


def test_too_few_runs_of_one(pair):
    table = pair()
    with pytest.raises(TooFewRuns, match="needs at least 5 runs, got 4"):
        compare(table[(table["arch"] == "a") | (table.index >= len(table) - 4)], "a", "b", 1e20)


def test_an_exact_law_predicts_the_budget_held_out(profiles, truth):
    table = profiles()
    held = holdout(table)
    assert held.compute == pytest.approx(1e21) and len(held.errors) == 9
    assert held.rmse < 1e-8 and held.rmse_within < 1e-8 and held.fit.parameters == pytest.approx(truth, rel=1e-5)
    assert held.n_predicted == pytest.approx(held.fit.optimum(1e21).n)
    assert held.n_observed == pytest.approx(held.n_predicted, rel=0.05)  # but for the parabola's bias


def test_the_error_of_a_holdout_is_of_rows_that_were_not_fitted(profiles):
    table = profiles(noise=0.003)
    held = holdout(table)
    rest, last = table[table["compute"] < 5e20], table[table["compute"] > 5e20]
    alone = fit_parametric(rest["n"], rest["d"], rest["loss"])
    assert held.fit.parameters == pytest.approx(alone.parameters)
    errors = np.log(alone.predict(last["n"], last["d"]) / last["loss"])
    np.testing.assert_allclose(held.errors, errors, rtol=1e-6)
    assert (held.bias, held.rmse) == pytest.approx((errors.mean(), (errors**2).mean() ** 0.5))
    shifted = table.assign(loss=table["loss"] * np.where(table["compute"] > 5e20, 1.1, 1))
    assert holdout(shifted).bias == pytest.approx(held.bias - np.log(1.1))
    assert holdout(shifted).rmse_within == held.rmse_within


def test_a_run_is_held_out_with_all_its_checkpoints():
    rng, rows = np.random.default_rng(0), []
    for k, n in enumerate(np.geomspace(1e8, 1e10, 10)):
        d = np.geomspace(1e9, 1e11, 30)
        loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.01 * rng.standard_normal())
        rows.append(pd.DataFrame({"run": f"r{k}", "n": n, "d": d, "loss": loss}))
    table = pd.concat(rows, ignore_index=True)
    held, rest, end = holdout(table), table[table["run"] != "r9"], table.iloc[-1]
    alone = fit_parametric(rest["n"], rest["d"], rest["loss"], cluster=rest["run"])
    assert held.errors == pytest.approx([np.log(alone.predict(end["n"], end["d"]) / end["loss"])])
    assert held.compute == pytest.approx(6e21) and np.isnan(held.n_observed)
    with pytest.raises(TooFewBudgets, match="at least 3 budgets, got 2"):  # of many checkpoints each
        holdout(table[table["run"].isin(["r0", "r9"])])


def test_a_budget_without_a_vertex_has_no_observed_size(profiles):
    table = profiles()
    bent = table.assign(loss=np.where(table["compute"] > 5e20, 9 - table["loss"], table["loss"]))
    assert np.isnan(holdout(bent).n_observed) and holdout(bent).n_predicted > 0


def test_what_a_holdout_refuses(profiles):
    with pytest.raises(TooFewBudgets, match="at least 3 budgets, got 2"):
        holdout(profiles((1e18, 1e19)))
    table = profiles()
    with pytest.raises(ValueError, match="holdout takes the runs of one architecture, got x, y; choose by"):
        holdout(table.assign(arch=np.where(table.index % 2, "x", "y")))


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say(pair):
    covered = 0
    for seed in range(150):
        low, high = compare(
            pair(1.5, noise=0.01, seed=seed), "a", "b", 1e20, bootstrap=200, seed=seed
        ).multiplier_interval
        covered += low <= 1.5 <= high
    assert 0.87 <= covered / 150 <= 0.995, covered / 150
