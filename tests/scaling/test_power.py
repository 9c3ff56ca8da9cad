"""Power laws, with and without a floor: exact points, the textbook's errors, and what is refused."""

import numpy as np
import pytest
from scipy import optimize, stats

from mad.scaling import NotFinite, TooFewRuns, fit_power_law

X = np.geomspace(1e3, 1e7, 12)


def noisy(floor=0.0, noise=0.05, seed=0, x=X):
    return (floor + 30 * x**-0.28) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(x)))


@pytest.mark.parametrize(("coefficient", "exponent"), [(30.0, -0.28), (0.02, 0.5), (2.0, 1.7)])
def test_exact_points_give_their_law_back(coefficient, exponent):
    law = fit_power_law(X, coefficient * X**exponent)
    assert (law.coefficient, law.exponent, law.floor) == pytest.approx((coefficient, exponent, 0), rel=1e-9)
    assert law.interval == pytest.approx((exponent, exponent), abs=1e-9)
    assert law.predict(2e8) == pytest.approx(coefficient * 2e8**exponent)


@pytest.mark.parametrize(("floor", "coefficient", "exponent"), [(1.7, 30.0, -0.28), (5.0, 0.02, 0.5), (0.1, 9.0, -1.2)])
def test_exact_points_give_their_floor_back(floor, coefficient, exponent):
    law = fit_power_law(X, floor + coefficient * X**exponent, floor=True)
    assert (law.floor, law.coefficient, law.exponent) == pytest.approx((floor, coefficient, exponent), rel=1e-6)
    assert np.abs(law.residuals).max() < 1e-8


def test_no_floor_where_there_is_none():
    law = fit_power_law(X, 30 * X**-0.28, floor=True)
    assert law.floor == pytest.approx(0, abs=1e-6) and law.exponent == pytest.approx(-0.28, rel=1e-5)
    bent = 30 * X ** (-0.28 - 0.01 * np.log(X / 1e5))  # falls ever faster, which no floor >= 0 does
    straight = fit_power_law(X, bent)
    assert fit_power_law(X, bent, floor=True).floor == 0
    assert fit_power_law(X, bent, floor=True).exponent == pytest.approx(straight.exponent, rel=1e-6)


def test_error_and_interval_are_those_of_a_straight_line():
    y = noisy()
    law, line = fit_power_law(X, y), stats.linregress(np.log(X), np.log(y))
    assert (law.exponent, law.standard_error) == (pytest.approx(line.slope), pytest.approx(line.stderr))
    assert law.coefficient == pytest.approx(np.exp(line.intercept))
    half = stats.t.ppf(0.975, 10) * line.stderr
    assert law.interval == pytest.approx((line.slope - half, line.slope + half))
    np.testing.assert_allclose(law.residuals, np.log(law.predict(X) / y))


def test_a_floors_fit_and_error_are_those_of_least_squares():
    y = noisy(floor=1.0, noise=0.01)
    law = fit_power_law(X, y, floor=True)

    def log_law(x, floor, log_coefficient, exponent):
        return np.log(floor + np.exp(log_coefficient) * x**exponent)

    found, covariance = optimize.curve_fit(log_law, X, np.log(y), p0=(1.0, 3.4, -0.28))
    assert (law.floor, np.log(law.coefficient), law.exponent) == pytest.approx(tuple(found), rel=1e-4)
    assert law.standard_error == pytest.approx(covariance[2, 2] ** 0.5, rel=1e-2)


def test_two_points_have_no_error_to_tell():
    law = fit_power_law([1, 10], [3, 6])
    assert law.exponent == pytest.approx(np.log10(2)) and law.interval == (-np.inf, np.inf)
    assert fit_power_law([1, 10], [3, 6], bootstrap=9).interval == (-np.inf, np.inf)  # all resamples are the two points
    assert np.isinf(law.standard_error) and np.isinf(fit_power_law([1, 2, 3], [5, 4, 3.5], floor=True).standard_error)


@pytest.mark.parametrize("floor", [False, True])
def test_the_bootstraps_interval(floor):
    y = noisy(floor=1.0 if floor else 0.0, noise=0.01)
    law = fit_power_law(X, y, floor=floor, bootstrap=60, seed=3)
    assert law.samples.shape == (60, 3) and law.interval == pytest.approx(np.percentile(law.samples[:, 2], [2.5, 97.5]))
    assert law.interval[0] < law.exponent < law.interval[1]
    assert (law.samples == fit_power_law(X, y, floor=floor, bootstrap=60, seed=3).samples).all()
    rows = np.random.default_rng(3).integers(12, size=12)
    assert law.samples[0, 2] == pytest.approx(fit_power_law(X[rows], y[rows], floor=floor).exponent)


@pytest.mark.parametrize(
    ("x", "y", "options", "kind", "message"),
    [
        ([1, 1, 1], [1, 2, 3], {}, TooFewRuns, r"a power law \(at different x\) needs at least 2 runs, got 1"),
        ([1, 2, 2], [1, 2, 3], {"floor": True}, TooFewRuns, "a power law with a floor .* needs at least 3 runs, got 2"),
        ([1, 2], [1, 0], {}, NotFinite, r"y must be positive and finite, but is 0.0 in 1 of 2 rows \(from 0: 1\)"),
        ([1, np.inf], [1, 2], {}, NotFinite, "x must be positive and finite, but is inf"),
        ([1, 2], [1, 2, 3], {}, ValueError, "columns of one length, got {'x': 2, 'y': 3}"),
        ([1, 2], [1, 2], {"bootstrap": 1}, ValueError, "bootstrap must be 0, for none, or at least 2"),
    ],
)
def test_what_is_refused(x, y, options, kind, message):
    with pytest.raises(kind, match=message):
        fit_power_law(x, y, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("floor", "bootstrap", "least"), [(False, 0, 0.92), (False, 400, 0.85), (True, 0, 0.92)])
def test_intervals_cover_the_truth_as_often_as_they_say(floor, bootstrap, least):
    """The bootstrap of twelve points is known to cover too little."""
    covered = 0
    for seed in range(300):
        y = noisy(1.0 if floor else 0.0, 0.02, seed)
        low, high = fit_power_law(X, y, floor, bootstrap=bootstrap, seed=seed).interval
        covered += low <= -0.28 <= high
    assert least <= covered / 300 <= 0.99, covered / 300
