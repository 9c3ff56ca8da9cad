"""The envelope of training curves: who wins where, power laws through it, intervals over runs, smoothing, refusals."""

import numpy as np
import pandas as pd
import pytest

from mad.scaling import Edge, NoInterval, NotFinite, TooFewRuns, fit_envelope
from mad.scaling.envelope import _smooth

pytestmark = pytest.mark.filterwarnings("ignore::mad.scaling.Edge")  # most tables have budgets to leave out


def curves(runs=25, rows=60, noise=0.0, seed=0):
    rng, frames = np.random.default_rng(seed), []
    for k, n in enumerate(np.geomspace(1e6, 1e10, runs)):
        d = n * np.geomspace(0.5, 500, rows)
        loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(noise * rng.standard_normal(rows))
        frames.append(pd.DataFrame({"run": f"r{k}", "n": n, "d": d, "loss": loss}))
    return pd.concat(frames, ignore_index=True)


def test_the_envelope_is_the_least_loss_at_each_compute_but_where_it_is_at_an_edge():
    table = curves(runs=12)
    c = (6 * table["n"] * table["d"]).groupby(table["n"])
    grid = np.geomspace(sorted(c.min())[2], sorted(c.max())[-2], 40)  # by itself: where runs compete
    wanted = []
    for compute in grid:
        at = {}
        for size, group in table.groupby("n"):
            c = 6 * size * group["d"].to_numpy()
            if c[0] <= compute * (1 + 1e-9) and compute <= c[-1] * (1 + 1e-9):
                at[size] = np.exp(np.interp(np.log(compute), np.log(c), np.log(group["loss"])))
        winner = min(at, key=at.get)
        if min(at) < winner < max(at):
            wanted.append((compute, winner, at[winner], compute / (6 * winner)))
    with pytest.warns(
        Edge, match=f"{40 - len(wanted)} of 40 budgets are left out of the envelope: the best model is the"
    ):
        fitted = fit_envelope(table, budgets=40)
    assert 20 < len(wanted) < 40
    np.testing.assert_allclose(np.stack([fitted.compute, fitted.n, fitted.loss, fitted.d], 1), wanted, rtol=1e-6)
    assert fitted.winners == len(np.unique(fitted.n.round())) and fitted.span == (fitted.compute[0], fitted.compute[-1])


def test_the_smallest_and_the_largest_model_do_not_bend_the_law():
    """They are the best at a third of these budgets, for want of others, and took 0.05 off the exponent."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 1e10, 12), np.geomspace(1e8, 1e12, 60), indexing="ij"))
    table = pd.DataFrame({"run": n, "n": n, "d": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37})
    assert fit_envelope(table).a == pytest.approx(0.37 / 0.72, abs=0.01)
    with pytest.raises(TooFewRuns, match="needs 3 sizes that are the best at some compute, .* trained too, got 2"):
        fit_envelope(table[np.isin(n, np.unique(n)[4:8])])
    seeds = pd.concat([table, table.assign(run=-n, loss=1.01 * table["loss"])])  # a second, worse run of each size
    assert fit_envelope(seeds).a == pytest.approx(fit_envelope(table).a, abs=1e-3)
    with pytest.warns(NoInterval, match=r"in \d+% of the resamples fewer than 3 sizes are best at some compute"):
        assert np.isnan(fit_envelope(table[np.isin(n, np.unique(n)[3:8])], bootstrap=50).n_law.interval).all()


def test_a_known_exponent_is_found():
    fitted = fit_envelope(curves(runs=60), span=(1e16, 1e20))
    assert fitted.a == pytest.approx(0.37 / 0.72, abs=0.01) and fitted.a + fitted.b == pytest.approx(1, abs=1e-6)
    assert fitted.span == pytest.approx((1e16, 1e20)) and len(fitted.compute) == 1500
    slope = np.polyfit(np.log(fitted.compute), np.log(fitted.n), 1)[0]
    assert fitted.a == pytest.approx(slope)


def test_points_are_not_independent_so_intervals_come_from_runs():
    assert np.isnan(fit_envelope(curves()).n_law.interval).all() and np.isnan(
        fit_envelope(curves()).n_law.standard_error
    )
    fitted, again = (fit_envelope(curves(), bootstrap=60, seed=3) for _ in range(2))
    low, high = fitted.n_law.interval
    assert low < fitted.a < high and fitted.n_law.interval == again.n_law.interval
    assert fitted.d_law.interval == pytest.approx((1 - high, 1 - low), abs=1e-6) and fitted.n_law.standard_error > 0
    few = fit_envelope(curves(runs=12), bootstrap=60, seed=3).n_law
    assert few.interval[1] - few.interval[0] > high - low


def test_another_compute_column_is_used():
    table = curves(runs=12)
    more = fit_envelope(table.assign(compute=12 * table["n"] * table["d"]), budgets=50)
    plain = fit_envelope(table, budgets=50)
    np.testing.assert_allclose(more.compute, 2 * plain.compute)
    assert more.a == pytest.approx(plain.a)


def test_order_of_rows_does_not_matter():
    table = curves(runs=12)
    mixed = fit_envelope(table.sample(frac=1, random_state=0), budgets=50)
    assert mixed.a == pytest.approx(fit_envelope(table, budgets=50).a)


@pytest.mark.parametrize("width", [0.5, 2.0, 30.0])
def test_smoothing_is_a_normalised_gaussian(width):
    values = np.random.default_rng(0).standard_normal(25)
    got = _smooth(values, width)
    for i in range(25):
        weights = [np.exp(-0.5 * ((i - j) / width) ** 2) if abs(i - j) <= int(4 * width) + 1 else 0 for j in range(25)]
        assert got[i] == pytest.approx(np.dot(weights, values) / np.sum(weights))
    assert (_smooth(values, 0) == values).all()


def test_noise_is_smoothed_away():
    noisy = curves(noise=0.03)
    plain, rough, smooth = fit_envelope(curves()), fit_envelope(noisy), fit_envelope(noisy, smooth=4.0)
    error = [np.abs(np.log(np.interp(plain.compute, f.compute, f.loss) / plain.loss)).mean() for f in (rough, smooth)]
    assert error[1] < 0.6 * error[0]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda t: fit_envelope(t[t["run"].isin(["r0", "r1"])]), TooFewRuns, "at least 3 runs, got 2"),
        (lambda t: fit_envelope(t, span=(1e30, 1e31)), TooFewRuns, r"no run was trained for 1e\+30 to 1e\+31 FLOPs"),
        (
            lambda t: fit_envelope(t, span=(1e18, 1e17)),
            ValueError,
            "positive number of FLOPs to a larger one, got .1e.18",
        ),
        (lambda t: fit_envelope(t, span=(0, 1e17)), ValueError, "the span must go from a positive number of FLOPs"),
        (lambda t: fit_envelope(t[:0]), TooFewRuns, "an envelope needs at least 3 runs, got none"),
        (
            lambda t: fit_envelope(t.assign(loss=t["n"]), span=(2e14, 2e15)),
            TooFewRuns,
            "3 sizes that are the best at some compute, for which .* got 0",
        ),
        (
            lambda t: fit_envelope(t[t["run"].isin(["r0", "r5", "r10"])]),
            TooFewRuns,
            "the runs overlap at no compute",
        ),
        (
            lambda t: fit_envelope(t.drop(columns="run")),
            ValueError,
            "need the columns run, n, d and loss, got n, d, loss",
        ),
        (lambda t: fit_envelope(t.assign(loss=-1.0)), NotFinite, "loss must be positive and finite"),
        (lambda t: fit_envelope(t, bootstrap=1), ValueError, "bootstrap must be 0"),
    ],
)
def test_what_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call(curves(runs=12))
