"""What the data cannot carry: refusals, which are errors, and warnings, each with a type of its own."""

import warnings
from typing import Any

import numpy as np

MOST_FAILED = 0.5  # of the resamples, for an interval
CHECKPOINT_ROWS = 12  # of one model size, the loss falling all along, before they look like one run's checkpoints


class Refused(ValueError):
    """The data cannot carry the fit that was asked for."""


class TooFewRuns(Refused):
    """Fewer rows than the law has parameters, or than a parabola needs."""


class TooFewBudgets(Refused):
    """Fewer than three compute budgets: two points define any power law."""


class NoInteriorMinimum(Refused):
    """The loss has no minimum inside the range of sizes that were trained."""


class NotFinite(Refused):
    """A number is missing, infinite, zero or negative where a logarithm is taken."""


class ScalingWarning(UserWarning):
    """The fit was made; this is why not to trust it too far."""


class NarrowSpan(ScalingWarning):
    """Model sizes span less than a decade: exponent and coefficient cannot be told apart."""


class DuplicatedRuns(ScalingWarning):
    """Rows occur more than once, so intervals come out too narrow."""


class Checkpoints(ScalingWarning):
    """Rows look like checkpoints of one run, which are not independent."""


class Edge(ScalingWarning):
    """A budget was left out because its minimum lies outside of what was trained, or is no minimum."""


class NoInterval(ScalingWarning):
    """Too few resamples could be fitted to say how sure the fit is."""


class Unbounded(ScalingWarning):
    """Some resamples leave a parameter without a bound: it has no variance."""


class NoFloor(ScalingWarning):
    """The irreducible loss tends to 0: the runs do not tell it."""


class Units(ScalingWarning):
    """Numbers that can hardly be what the column is said to hold."""


class Disagreement(ScalingWarning):
    """Two ways to estimate the same number do not agree."""


class RepeatedTokens(ScalingWarning):
    """Runs saw tokens more than once, which laws of sizes and tokens take for new ones."""


class Extrapolation(ScalingWarning):
    """A prediction beyond the largest budget that was trained, or below the smallest."""


def positive(**columns: Any) -> list[np.ndarray]:
    """The columns as float64 vectors of one length; int64 in particular, since 6 n d overflows it beyond 9.2e18.

    Raises:
        NotFinite: a value is not a positive finite number; the message names column and rows.
        ValueError: columns of different lengths, or not numbers.
    """
    arrays = []
    for name, values in columns.items():
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must hold numbers: {error}") from None
        if array.ndim != 1:
            raise ValueError(f"{name} must be a vector, got shape {array.shape}")
        bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if len(bad):
            rows = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise NotFinite(
                f"{name} must be positive and finite, but is {array[bad[0]]} in {len(bad)} of {len(array)} rows "
                f"(from 0: {rows}); drop these rows"
            )
        arrays.append(array)
    lengths = {name: len(array) for name, array in zip(columns, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected columns of one length, got {lengths}")
    return arrays


def enough(have: int, need: int, what: str) -> None:
    if have < need:
        raise TooFewRuns(f"{what} needs at least {need} runs, got {have}")


def resamples(bootstrap: int) -> None:
    """Raises:
    ValueError: not a number of resamples.
    """
    if not isinstance(bootstrap, (int, np.integer)) or bootstrap < 0 or bootstrap == 1:
        raise ValueError(f"bootstrap must be 0, for none, or at least 2 resamples, got {bootstrap!r}")


def warn(kind: type[ScalingWarning], message: str) -> None:
    warnings.warn(message, kind, stacklevel=3)


def look(n: np.ndarray, d: np.ndarray, loss: np.ndarray, clustered: bool) -> None:
    """Warn of what makes a table of runs worth less than its number of rows."""
    if n.max() / n.min() < 10:
        warn(NarrowSpan, f"model sizes span a factor of {n.max() / n.min():.3g} only; a decade is the least to trust")
    if clustered:
        return
    rows = np.stack([n, d, loss], 1)
    order = np.lexsort(rows.T[::-1])
    rows = rows[order]
    repeated = int((rows[1:] == rows[:-1]).all(1).sum())
    if repeated:
        warn(DuplicatedRuns, f"{repeated} rows repeat another one; drop them, or say by cluster= what belongs together")
    # by size, then by tokens: does the loss only fall?
    starts = np.flatnonzero(np.r_[True, rows[1:, 0] != rows[:-1, 0]])
    sizes = np.diff(np.r_[starts, len(rows)])
    falls = np.r_[True, (rows[1:, 2] <= rows[:-1, 2]) | (rows[1:, 0] != rows[:-1, 0])]
    falling = np.logical_and.reduceat(falls, starts) & (sizes >= CHECKPOINT_ROWS)
    if sizes[falling].sum() > len(rows) / 2:
        warn(
            Checkpoints,
            f"{falling.sum()} model sizes have {CHECKPOINT_ROWS} or more rows each whose loss falls all along, as the "
            "checkpoints of one run do; if they are, they are not independent: give the run of each row (cluster=, or "
            "a column run), or keep each run's last",
        )
