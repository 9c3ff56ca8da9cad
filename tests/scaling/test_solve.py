"""The optimiser: its derivatives, and that nothing beats what it finds."""

import numpy as np
import pytest

from mad.scaling import solve

KINDS = {"huber": (False, 0.02), "raw huber": (True, 0.2), "log_mse": (False, np.inf), "mse": (True, np.inf)}


def problem(raw=False, delta=1e-3, rows=40, noise=0.03, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-3, 3, (2, rows))
    loss = (1.8 + np.exp(-0.4 - 0.35 * x) + np.exp(-0.2 - 0.4 * y)) * np.exp(noise * rng.standard_normal(rows))
    return solve.Problem(x - x.mean(), y - y.mean(), loss, raw, delta)


THETA = np.array([[-0.5, -0.1, 0.6, 0.3, 0.45], [0.2, -0.8, 0.4, 0.5, 0.2]])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_and_hessian_are_the_finite_differences(kind):
    p = problem(*KINDS[kind])
    weights = np.random.default_rng(1).uniform(0, 2, (2, 40))
    value, gradient, hessian = p.derivatives(THETA, weights)
    np.testing.assert_allclose(value, p.objective(THETA, weights), rtol=1e-14)
    for j in range(5):
        step = np.zeros(5)
        step[j] = 1e-6
        up, down = p.derivatives(THETA + step, weights), p.derivatives(THETA - step, weights)
        np.testing.assert_allclose((up[0] - down[0]) / 2e-6, gradient[:, j], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose((up[1] - down[1]) / 2e-6, hessian[:, j], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_the_sum_that_its_name_says(kind):
    raw, delta = KINDS[kind]
    p = problem(raw, delta)
    total = 0.0
    for x, y, loss in zip(p.x, p.y, p.loss, strict=True):
        a, b, e, alpha, beta = THETA[0]
        predicted = np.exp(a - alpha * x) + np.exp(b - beta * y) + np.exp(e)
        r = abs(predicted - loss if raw else np.log(predicted) - np.log(loss))
        total += 0.5 * r * r if r <= delta else delta * (r - 0.5 * delta)
    assert p.objective(THETA[:1], np.ones((1, 40)))[0] == pytest.approx(total, rel=1e-12)


def test_each_cell_of_the_grid_is_its_least_squares_fit():
    p = problem(raw=True, delta=np.inf)
    w = np.random.default_rng(2).uniform(0.5, 2, 40)
    alphas, betas = np.array([0.1, 0.5, 2.5]), np.array([0.05, 0.8])
    squares, found = solve._grid(p.x, p.y, p.loss, w, alphas, betas)
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            design = np.stack([np.exp(-alpha * p.x), np.exp(-beta * p.y), np.ones(40)], 1) * np.sqrt(w)[:, None]
            want, rest = np.linalg.lstsq(design, p.loss * np.sqrt(w))[:2]
            np.testing.assert_allclose(found[i, j], want, rtol=1e-8)
            assert squares[i, j] == pytest.approx(rest[0], rel=1e-8)


def test_resamples_solved_together_are_those_solved_alone():
    p = problem(noise=0.01)
    rng = np.random.default_rng(3)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=5).astype(float)
    begin = np.broadcast_to(THETA[0], (5, 5))
    together = solve.solve([p], begin, weights)
    alone = np.concatenate([solve.solve([p], begin[:1], weights[k : k + 1]) for k in range(5)])
    np.testing.assert_allclose(p.objective(together, weights), p.objective(alone, weights), rtol=1e-9)


def test_the_gradient_vanishes_where_descent_ends():
    p, weights = problem(noise=0.01), np.ones((1, 40))
    before = p.derivatives(THETA[:1], weights)
    after = p.derivatives(solve.descend(p, THETA[:1], weights), weights)
    assert after[0][0] < before[0][0] and np.abs(after[1]).max() < 1e-6 * np.abs(before[1]).max()
    assert (np.linalg.eigvalsh(after[2][0]) > -1e-9).all()


def test_exponents_stay_positive_where_the_loss_rises():
    p = problem(raw=False, delta=np.inf)
    rising = solve.Problem(p.x, p.y, 2 * np.exp(0.1 * p.x), False, np.inf)
    assert (solve.descend(rising, THETA, np.ones((2, 40)))[:, 3:] > 0).all()


def test_nothing_beats_the_absolute_residuals_found():
    p, weights = problem(noise=0.02), np.random.default_rng(4).integers(0, 3, 40).astype(float)
    begin = solve.minimise([problem(delta=delta, noise=0.02) for delta in solve.LAD_DELTAS], lambda theta: np.stack(
        [(weights * np.abs(p.residuals(t[None])[0])).sum() for t in theta]), weights)  # fmt: skip
    theta = solve.absolute(p, begin, weights)
    residuals = p.residuals(theta[None])[0]
    best = weights @ np.abs(residuals)
    assert best <= weights @ np.abs(p.residuals(begin[None])[0])
    assert (np.sort(np.abs(residuals[weights > 0]))[:5] < 1e-9).all()  # a kink: it passes through five points
    rng = np.random.default_rng(5)
    for size in 10.0 ** np.arange(-7, 0):
        near = theta + size * rng.standard_normal((2000, 5))
        assert ((np.abs(p.residuals(near)) * weights).sum(1) >= best * (1 - 1e-10)).all()
