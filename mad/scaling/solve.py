"""The optimiser behind `fit_parametric`: a grid of exact linear problems, then Newton, for many resamples at once.

For fixed exponents the law E + A n^-alpha + B d^-beta is linear, so that every cell of a grid over the exponents is a
3 x 3 system (variable projection): no starting point is guessed. From the best cells the objective itself is minimised
by damped Newton steps with exact first and second derivatives, in logarithms and centred variables (without centring
the problem is conditioned like 1e6). A bootstrap resample is a vector of row weights, so thousands are solved together.

theta = (a, b, e, alpha, beta): log prediction = logsumexp(a - alpha x, b - beta y, e), x and y the centred ln n, ln d.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, sparse

GRID = np.geomspace(0.02, 3.0, 72)  # of exponents
STARTS = 6  # cells that are followed
ZOOMS, ZOOM_POINTS = 6, 13  # how often, and by how many points, the neighbourhood of the best cell is looked at again
FEW_ROWS = 4096  # enough to find the cell, and which of them leads lowest
CHUNK = 1 << 15  # resamples times rows solved together: what the cache holds
LAD_DELTAS = (1e-3, 1e-4, 1e-5)  # the Huber objective's way to the absolute one


@dataclass(frozen=True)
class Problem:
    """x, y: centred logarithms of n and d (rows,); loss (rows,); raw: residuals of the loss, not of its logarithm."""

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    raw: bool
    delta: float  # of the Huber function; infinite: squares

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """theta (S, 5) -> (S, rows)."""
        prediction = _terms(theta, self.x, self.y)[0]
        return np.exp(prediction) - self.loss if self.raw else prediction - np.log(self.loss)

    def objective(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """theta (S, 5), weights (S, rows) -> (S,), sums over the rows."""
        return (weights * self._rho(self.residuals(theta))).sum(1)

    def _rho(self, r: np.ndarray) -> np.ndarray:
        if np.isinf(self.delta):
            return 0.5 * r * r
        size = np.abs(r)
        small = np.minimum(size, self.delta)
        return small * (size - 0.5 * small)

    def derivatives(self, theta: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objective (S,), gradient (S, 5), Hessian (S, 5, 5)."""
        prediction, parts = _terms(theta, self.x, self.y)
        p = np.exp(prediction)
        r = p - self.loss if self.raw else prediction - np.log(self.loss)
        psi = weights * np.clip(r, -self.delta, self.delta)
        inner = weights * (np.abs(r) <= self.delta)
        if self.raw:  # dr = p dlog p; the curvature of exp adds psi p once more, which cancels below
            psi, square = psi * p, inner * p * p
        else:
            square = inner - psi
        jacobian = self.jacobian(parts)
        gradient = np.einsum("sr,jsr->sj", psi, jacobian)
        hessian = np.einsum("sr,jsr,ksr->sjk", square, jacobian, jacobian, optimize=True)
        # the second derivative of a logsumexp: the mean of z z' under its weights, less the mean's own square
        first, second, third = (psi * part for part in parts)
        for i, moments in ((0, (first, self.x, 3)), (1, (second, self.y, 4))):
            weight, z, j = moments
            total, mean, spread = weight.sum(1), weight @ z, weight @ (z * z)
            hessian[:, i, i] += total
            hessian[:, i, j] -= mean
            hessian[:, j, i] -= mean
            hessian[:, j, j] += spread
        hessian[:, 2, 2] += third.sum(1)
        return (weights * self._rho(r)).sum(1), gradient, hessian

    def jacobian(self, parts: list[np.ndarray]) -> np.ndarray:
        """d log prediction / d theta, (5, S, rows)."""
        return np.stack([*parts, -self.x * parts[0], -self.y * parts[1]])


def _terms(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log prediction, and the share of each of the three terms in it."""
    a, b, e, alpha, beta = (column[:, None] for column in theta.T)
    logs = [a - alpha * x, b - beta * y, np.broadcast_to(e, (len(theta), len(x)))]
    top = np.maximum(np.maximum(logs[0], logs[1]), logs[2])
    shares = [np.exp(t - top) for t in logs]
    total = shares[0] + shares[1] + shares[2]
    return top + np.log(total), [share / total for share in shares]


def starts(problem: Problem, weights: np.ndarray) -> np.ndarray:
    """theta (STARTS and some, 5): the local minima of relative squares over the grid of exponents.

    Where one term dwarfs the other, the other's exponent is lost in the error of the first one's on this grid, and its
    coefficient may be negative everywhere. So each axis is also refined by itself, against all of the other.
    """
    x, y, loss = problem.x, problem.y, problem.loss
    w = weights if problem.raw else weights / loss**2
    squares, found = _grid(x, y, loss, w, GRID, GRID)
    lowest = np.unravel_index(np.argmin(squares), squares.shape)
    begin = [_cells(squares, found, GRID, GRID, STARTS)]
    for axis in (0, 1):
        axes, at, step = [GRID, GRID], GRID[lowest[axis]], GRID[1] / GRID[0]
        for _ in range(ZOOMS):
            axes[axis] = at * step ** np.linspace(-2, 2, ZOOM_POINTS)
            squares, found = _grid(x, y, loss, w, axes[0], axes[1])
            at = axes[axis][np.unravel_index(np.argmin(squares), squares.shape)[axis]]
            begin.append(_cells(squares, found, axes[0], axes[1], 1))
            step **= 4 / (ZOOM_POINTS - 1)
    theta = np.concatenate(begin)
    if not len(theta):  # no cell without a negative coefficient
        scale = np.log(np.median(loss) / 3)
        return np.array([[scale, scale, scale, slope, slope] for slope in (0.2, 0.4, 0.8)])
    return theta


def _grid(x: np.ndarray, y: np.ndarray, loss: np.ndarray, w: np.ndarray, alphas: np.ndarray, betas: np.ndarray):
    """The least sum of weighted squares (alphas, betas), and the coefficients A, B, E (alphas, betas, 3) that give it.

    Columns are scaled to one length: exponents of 3 make powers that differ by ten orders of magnitude.
    """
    n, d = np.exp(-alphas[:, None] * x), np.exp(-betas[:, None] * y)
    lengths = [np.sqrt((n * n) @ w), np.sqrt((d * d) @ w), np.sqrt(w.sum())]
    n, d, one = n / lengths[0][:, None], d / lengths[1][:, None], 1 / lengths[2]
    normal, right = np.empty((len(alphas), len(betas), 3, 3)), np.empty((len(alphas), len(betas), 3))
    normal[..., range(3), range(3)] = 1 + 1e-14
    normal[..., 0, 1] = normal[..., 1, 0] = (n * w) @ d.T
    normal[..., 0, 2] = normal[..., 2, 0] = ((n @ w) * one)[:, None]
    normal[..., 1, 2] = normal[..., 2, 1] = ((d @ w) * one)[None, :]
    right[..., 0], right[..., 1] = (n @ (w * loss))[:, None], (d @ (w * loss))[None, :]
    right[..., 2] = (w @ loss) * one
    found = np.linalg.solve(normal, right[..., None])[..., 0]
    squares = w @ (loss * loss) - (found * right).sum(-1)
    found[..., 0] /= lengths[0][:, None]
    found[..., 1] /= lengths[1][None, :]
    found[..., 2] /= lengths[2]
    return squares, found


def _cells(squares: np.ndarray, found: np.ndarray, alphas: np.ndarray, betas: np.ndarray, most: int) -> np.ndarray:
    """theta (up to `most`, 5) of the lowest local minima whose coefficients are positive."""
    best = local_minima(np.where((found <= 0).any(-1), np.inf, squares))[:most]
    slopes = np.stack([alphas[best[:, 0]], betas[best[:, 1]]], 1)
    return np.concatenate([np.log(found[best[:, 0], best[:, 1]]), slopes], 1)


def local_minima(surface: np.ndarray) -> np.ndarray:
    """Cells (rows, 2) no higher than their eight neighbours, lowest first."""
    padded = np.pad(surface, 1, constant_values=np.inf)
    g, h = surface.shape
    around = [padded[1 + i : 1 + i + g, 1 + j : 1 + j + h] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    cells = np.argwhere(np.isfinite(surface) & (surface <= np.minimum.reduce(around)))
    return cells[np.argsort(surface[tuple(cells.T)])]


def descend(problem: Problem, theta: np.ndarray, weights: np.ndarray, steps: int = 200) -> np.ndarray:
    """Damped Newton from theta (S, 5) under weights (S, rows); a step that does not descend is damped more."""
    theta, damping = theta.copy(), np.full(len(theta), 1e-3)
    stuck = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    value, gradient, hessian = problem.derivatives(theta, weights)
    scale = np.sqrt(np.abs(value) + 1e-300)
    for _ in range(steps):
        if not len(active):
            break
        g, h = gradient[active], hessian[active]
        diagonal = np.abs(np.einsum("sjj->sj", h)) + 1e-12 * np.abs(h).max((1, 2))[:, None] + 1e-300
        step = -np.linalg.solve(h + (damping[active, None] * diagonal)[:, :, None] * np.eye(5), g[..., None])[..., 0]
        step *= np.minimum(1, 2 / np.maximum(np.abs(step).max(1), 1e-300))[:, None]  # at most e^2 at a time
        down = np.maximum(-step[:, 3:] / theta[active, 3:], 0).max(1)
        step *= np.minimum(1, 0.9 / np.maximum(down, 1e-300))[:, None]  # exponents stay positive
        tried = theta[active] + step
        new = problem.derivatives(tried, weights[active])
        better = new[0] < value[active]
        won, lost = active[better], active[~better]
        gain = (value[won] - new[0][better]) / np.maximum(value[won], 1e-300)
        theta[won], value[won] = tried[better], new[0][better]
        gradient[won], hessian[won] = new[1][better], new[2][better]
        damping[won] = np.maximum(damping[won] / 5, 1e-12)
        damping[lost] *= 6
        stuck[won] = np.where(gain < 1e-10, stuck[won] + 1, 0)
        finished = (stuck[active] >= 3) | (damping[active] > 1e12) | (value[active] <= 1e-28 * scale[active])
        active = active[~finished]
    return theta


def solve(stages: list[Problem], theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """theta (S, 5) through the stages of an objective one after the other, in pieces that fit the cache."""
    size = max(1, CHUNK // weights.shape[1])
    pieces = []
    for first in range(0, len(theta), size):
        piece, rows = theta[first : first + size], weights[first : first + size]
        for problem in stages:
            piece = descend(problem, piece, rows)
        pieces.append(piece)
    return np.concatenate(pieces)


def minimise(stages: list[Problem], value: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The best theta (5,) from all starts, by `value` of (S, 5)."""

    def best(stages: list[Problem], begin: np.ndarray, weights: np.ndarray) -> np.ndarray:
        found = solve(stages, begin, np.broadcast_to(weights, (len(begin), len(weights))))
        return found[np.nanargmin(value(found))]

    rows = np.linspace(0, len(weights) - 1, min(len(weights), FEW_ROWS)).astype(int)
    few = [replace(p, x=p.x[rows], y=p.y[rows], loss=p.loss[rows]) for p in stages]
    theta = best(few, starts(few[0], weights[rows]), weights[rows])
    return theta if len(rows) == len(weights) else best(stages, theta[None], weights)


def absolute(problem: Problem, theta: np.ndarray, weights: np.ndarray, steps: int = 30) -> np.ndarray:
    """From near the minimum theta (5,) of the sum of absolute residuals to it: linear programs in a trust region.

    The minimum is a kink at which five residuals vanish; Newton steps on smoothed kinks come close and no further.
    """
    used = np.flatnonzero(weights)
    radius, unit = 0.1, sparse.identity(len(used), format="csr")
    value = (weights * np.abs(problem.residuals(theta[None])[0])).sum()
    for _ in range(steps):
        r = problem.residuals(theta[None])[0][used]
        jacobian = problem.jacobian(_terms(theta[None], problem.x, problem.y)[1])[:, 0, used].T  # (rows, 5)
        bounds = [(-radius, radius)] * 5 + [(0, None)] * (2 * len(used))  # r + J step = above - below
        equal = sparse.hstack([sparse.csr_matrix(jacobian), -unit, unit], format="csr")
        costs = np.concatenate([np.zeros(5), weights[used], weights[used]])
        found = optimize.linprog(costs, A_eq=equal, b_eq=-r, bounds=bounds, method="highs")
        if not found.success:
            break
        step = found.x[:5]
        new = (weights * np.abs(problem.residuals((theta + step)[None])[0])).sum()
        if new < value:
            finished = value - new < 1e-13 * value
            theta, value, radius = theta + step, new, 2 * radius
            if finished:
                break
        else:
            radius = np.abs(step).max() / 4
        if radius < 1e-10:
            break
    return theta
