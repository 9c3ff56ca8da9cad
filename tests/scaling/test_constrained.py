"""What repeated tokens are worth: known constants recovered, the published table's minima, and how little it says."""

import dataclasses

import numpy as np
import pytest

from mad.scaling import NotFinite, Refused, TooFewRuns, Unbounded, fit_data_constrained, fit_parametric
from mad.scaling.constrained import C4


def by_hand(n, d, unique, rd, rn, base):
    """The law, run by run."""
    A, B, E, alpha, beta = (base[name] for name in ("A", "B", "E", "alpha", "beta"))
    losses = []
    for one_n, one_d, one_u in zip(n, d, unique, strict=True):
        used = min(one_u, one_d)
        tokens = used + used * rd * (1 - np.exp(-(one_d / used - 1) / rd))
        # N* of the budget whose D* is `used`: alpha A / N^alpha = beta B / D^beta
        warranted = min(one_n, (alpha * A / (beta * B) * used**beta) ** (1 / alpha))
        parameters = warranted + warranted * rn * (1 - np.exp(-(one_n / warranted - 1) / rn))
        losses.append(E + A / parameters**alpha + B / tokens**beta)
    return np.array(losses)


def table(rd=12.0, rn=4.0, base=C4, noise=0.0, seed=0, rows=120):
    rng = np.random.default_rng(seed)
    n, unique = 10 ** rng.uniform(7.5, 10, rows), 10 ** rng.uniform(8, 10.5, rows)
    d = unique * 10 ** rng.uniform(-0.3, 2, rows)
    loss = by_hand(n, d, unique, rd, rn, base) * np.exp(noise * rng.standard_normal(rows))
    return n, d, unique, loss


@pytest.mark.parametrize(("rd", "rn"), [(12.0, 4.0), (95.0, 1.7), (0.8, 30.0)])
def test_exact_tables_give_their_constants_back(rd, rn):
    n, d, unique, loss = table(rd, rn)
    fitted = fit_data_constrained(n, d, unique, loss)
    assert (fitted.rd, fitted.rn) == pytest.approx((rd, rn), rel=1e-4) and fitted.objective < 1e-12
    for name, (low, high) in fitted.plausible().items():  # no point of the grid is as good, which is not: all are
        assert low < getattr(fitted, name) < high < 1.08 * low
    np.testing.assert_allclose(fitted.predict(n, d, unique), loss, rtol=1e-6)
    assert fitted.base == pytest.approx({name: float(value) for name, value in C4.items()})


def test_the_law_of_a_table_of_its_own(scattered, truth):
    base = fit_parametric(*(scattered()[name] for name in ("n", "d", "loss")))
    n, d, unique, loss = table(7.0, 9.0, base=truth)
    for given in (base, truth):
        fitted = fit_data_constrained(n, d, unique, loss, base=given)
        assert (fitted.rd, fitted.rn) == pytest.approx((7.0, 9.0), rel=1e-3)
    fresh = fitted.predict(1e8, 2e10, 1e12)  # nothing repeated, and warranted: the parametric law itself
    assert fresh == pytest.approx(base.predict(1e8, 2e10), rel=1e-6)


def test_prediction_objective_and_residuals_are_the_laws():
    n, d, unique, loss = table(noise=0.005)
    fitted = fit_data_constrained(n, d, unique, loss)
    predicted = by_hand(n, d, unique, fitted.rd, fitted.rn, C4)
    np.testing.assert_allclose(fitted.predict(n, d, unique), predicted, rtol=1e-12)
    np.testing.assert_allclose(fitted.residuals, np.log(predicted / loss), atol=1e-12)
    r = np.abs(fitted.residuals)
    assert fitted.objective == pytest.approx(np.where(r < 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum())
    assert fitted.minima[0] == (fitted.rd, fitted.rn, fitted.objective)
    assert [m[2] for m in fitted.minima] == sorted(m[2] for m in fitted.minima)


def test_nothing_in_the_plane_is_lower_and_a_profile_is_its_shadow():
    n, d, unique, loss = table(noise=0.005)
    fitted = fit_data_constrained(n, d, unique, loss)

    def objective(rd, rn):
        r = np.abs(np.log(by_hand(n, d, unique, rd, rn, C4) / loss))
        return np.where(r < 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum()

    rng = np.random.default_rng(1)
    for rd, rn in np.exp(rng.uniform(np.log(0.05), np.log(2000), (100, 2))):
        assert objective(rd, rn) >= fitted.objective
    rd, least = fitted.profile_rd[80]
    assert least == pytest.approx(min(objective(rd, rn) for rn in fitted.profile_rn[:, 0]))
    assert fitted.profile_rd[:, 1].min() == fitted.profile_rn[:, 1].min() >= fitted.objective
    low, high = fitted.plausible()["rd"]
    assert low < fitted.rd < high
    assert fitted.plausible(0.5)["rd"][1] >= high


def test_muennighoffs_published_pair_is_a_local_minimum(muennighoff):
    m = muennighoff
    fitted = fit_data_constrained(m["N"], m["D"], m["U"], m["loss"])
    assert len(m) == 182 and fitted.objective <= 0.0158047
    assert (fitted.rd, fitted.rn) == pytest.approx((95.4, 1.71), rel=5e-3)
    published = dataclasses.replace(fitted, rd=15.39, rn=5.31)
    r = np.abs(np.log(published.predict(m["N"], m["D"], m["U"]) / m["loss"]))
    assert np.where(r < 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum() == pytest.approx(0.01582593, abs=1e-8)
    assert any(
        rd == pytest.approx(15.39, rel=0.01) and rn == pytest.approx(5.31, rel=0.01) for rd, rn, _ in fitted.minima
    )


def test_muennighoffs_pair_is_weakly_identified(muennighoff):
    m = muennighoff
    fitted = fit_data_constrained(m["N"], m["D"], m["U"], m["loss"])
    ranges = fitted.plausible(0.01)
    assert ranges["rd"][0] < 15.39 < 95.4 < ranges["rd"][1] and ranges["rd"][1] / ranges["rd"][0] > 10
    assert ranges["rn"][1] / ranges["rn"][0] > 5


@pytest.mark.parametrize(
    ("change", "options", "kind", "message"),
    [
        (
            {"unique": 1e14},
            {},
            Refused,
            "no run has more tokens than unique ones: what was never repeated says nothing",
        ),
        ({"loss": np.nan}, {}, NotFinite, "loss must be positive and finite"),
        (
            {},
            {"base": {"A": 1, "B": 2, "E": 1}},
            ValueError,
            "base lacks alpha, beta; expected a ParametricFit or A, B",
        ),
        ({}, {"base": C4 | {"B": -1}}, ValueError, "B of base must be positive and finite, got -1.0"),
        ({}, {"base": 3}, ValueError, "base lacks A, B, E, alpha, beta"),
    ],
)
def test_what_is_refused(change, options, kind, message):
    columns = dict(zip(("n", "d", "unique", "loss"), table(), strict=True))
    columns |= {name: np.full(120, value) for name, value in change.items()}
    with pytest.raises(kind, match=message):
        fit_data_constrained(**columns, **options)


def test_constants_beyond_what_was_tried_are_not_determined():
    """They came out as 1e18: tokens that are repeated do as much here as new ones, and no model is too large."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e8, 5), np.geomspace(1e10, 1e11, 5)))
    with pytest.warns(Unbounded) as caught:
        loss = C4["E"] + C4["A"] * n ** -C4["alpha"] + C4["B"] * d ** -C4["beta"]
        fitted = fit_data_constrained(n, d, d / 2, loss * 0.99)
    assert 1990 < fitted.rd <= 2000.001 and 0.049 < fitted.rn < 2000.001
    said = [str(warning.message) for warning in caught]
    assert (
        "R_D* is not determined: it is 2e+03, the last that was tried, or beyond: repeated tokens are worth" in said[0]
    )
    assert "R_N* is not determined: any value fits, so that these runs say nothing of excess parameters" in said[1]


def test_two_runs_are_too_few():
    with pytest.raises(TooFewRuns, match="with two constants, needs at least 3 runs, got 2"):
        fit_data_constrained([1e8, 1e9], [1e10, 1e10], [1e9, 1e9], [3, 2.9])
