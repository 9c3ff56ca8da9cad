"""All that a table of runs supports: every fit for every architecture, or the reason why it is refused.

    report = make(read("results/isoflop"))
    report.groups["hyena"].parametric, report.state, report.comparisons, report.notes

Nothing here fails for want of data: a refusal or a warning becomes a note that says where and why.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mad.registry import nearest
from mad.scaling.checks import Disagreement, Extrapolation, Refused, RepeatedTokens, ScalingWarning, TooFewRuns
from mad.scaling.compare import Comparison, Holdout, compare, holdout, outside
from mad.scaling.constrained import DataConstrainedFit, fit_data_constrained
from mad.scaling.envelope import EnvelopeFit, fit_envelope
from mad.scaling.isoflop import IsoflopFit, fit_isoflop
from mad.scaling.parametric import NAMES, ParametricFit, fit_parametric
from mad.scaling.rank import RankCorrelation, rank_correlation
from mad.scaling.state import MOST_NATS, StateOptimalFit, fit_state_optimal
from mad.scaling.table import ALIASES, Frame, clusters, csv_file, last, per_token, read_table

SCORES = ("mean", "score", "mad_score", "mad_mean_acc", "accuracy")  # columns that hold one, the first there is
REPEATED = 1.01  # tokens trained on over those that differ: from here a run has seen some twice
RESAMPLED_ROWS = 2_000_000  # of all resamples together: larger tables get fewer of them
FEWEST_RESAMPLES = 100
LEFT_OUT = {"samples", "runs", "residuals"}  # of the JSON: as long as the table, or longer
POINTS = {"compute", "n", "d", "loss"}  # of an envelope, 1500 of each


class Note(NamedTuple):
    """A refusal or a warning: which fit of which architecture, the type's name, and what it says."""

    where: str
    kind: str
    message: str


@dataclass
class Group:
    """One architecture's rows, and the fits that they carried; None where they did not."""

    arch: str
    runs: Frame
    per_token: float  # training FLOPs of a parameter on a token; 6 by definition where compute was derived
    parametric: ParametricFit | None = None
    isoflop: IsoflopFit | None = None
    holdout: Holdout | None = None
    envelope: EnvelopeFit | None = None
    constrained: DataConstrainedFit | None = None

    @property
    def final(self) -> Frame:
        """A row a run: the last one where rows are checkpoints."""
        return last(self.runs)


@dataclass
class Scores:
    """Scores of architectures beside their compute-optimal perplexity at one budget, and how their ranks agree."""

    points: Frame  # arch, score, perplexity
    compute: float
    correlation: RankCorrelation | None = None


@dataclass
class Report:
    """What `make` found. `compute` is the budget of the comparisons: the largest that all with a law reached."""

    groups: dict[str, Group]
    compute: float
    state: StateOptimalFit | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    scores: Scores | None = None
    notes: list[Note] = field(default_factory=list)

    def attempt(self, where: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The function's result, or None where the data refuse it; what it warns of becomes notes."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = function(*args, **options)
            except Refused as refusal:
                self.note(where, type(refusal).__name__, str(refusal))
                result = None
        for warning in caught:
            if issubclass(warning.category, ScalingWarning):
                self.note(where, warning.category.__name__, str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return result

    def note(self, where: str, kind: str, message: str) -> None:
        if (kind, message) not in {(note.kind, note.message) for note in self.notes}:
            self.notes.append(Note(where, kind, message))


def make(
    table: Frame, *, scores: Frame | None = None, at: float | None = None, bootstrap: int | None = None, seed: int = 0
) -> Report:
    """Fit all that a table supports.

    Args:
        table: as `mad.scaling.read` gives it.
        scores: arch and score, as `read_scores` gives them: do they predict the perplexity?
        at: training FLOPs at which architectures are compared; None: the largest budget that all of them reached, but
            for those without a parametric law, which are not compared.
        bootstrap: resamples; None: 1000, fewer for large tables.
    """
    if bootstrap is None:
        bootstrap = min(1000, max(FEWEST_RESAMPLES, RESAMPLED_ROWS // len(table)))
    groups = {
        str(arch): Group(str(arch), runs, per_token(runs["compute"], runs["n"], runs["d"]))
        for arch, runs in table.groupby("arch", sort=True)
    }
    report = Report(groups, math.nan)
    for group in groups.values():
        _fit(report, group, bootstrap, seed)
    lawful = [group for group in groups.values() if group.parametric]
    reached = [group.runs["compute"].max() for group in lawful or groups.values()]
    report.compute = float(min(reached) if at is None else at)
    final = pd.concat([group.final for group in groups.values()])
    if "state_size" in final:
        report.state = report.attempt("state", fit_state_optimal, final, bootstrap=bootstrap, seed=seed)
    lawful.sort(key=lambda group: _loss(group, report.compute))
    for group in lawful:
        ends = group.runs["compute"].agg(["min", "max"])
        report.attempt(f"{group.arch}, optimum", outside, report.compute, *ends, f"{group.arch} was")
    for other in lawful[1:]:
        best = lawful[0].arch
        found = report.attempt(
            f"{best} against {other.arch}", _compare, table, best, other.arch, report.compute, bootstrap=bootstrap,
            seed=seed,
        )  # fmt: skip
        report.comparisons += [found] if found else []
    if scores is not None:
        report.scores = _correlate(report, lawful, scores)
    return report


def _fit(report: Report, group: Group, bootstrap: int, seed: int) -> None:
    runs, final, arch = group.runs, group.final, group.arch
    options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed}
    n, d, loss = (runs[key].to_numpy() for key in ("n", "d", "loss"))
    cluster = clusters(runs)
    group.parametric = report.attempt(f"{arch}, parametric", fit_parametric, n, d, loss, cluster=cluster, **options)
    columns = [final[key].to_numpy() for key in ("compute", "n", "d", "loss")]
    group.isoflop = report.attempt(f"{arch}, IsoFLOP", fit_isoflop, *columns, **options)
    group.holdout = report.attempt(f"{arch}, hold-out", holdout, runs)
    if cluster is not None:
        group.envelope = report.attempt(f"{arch}, envelope", fit_envelope, runs, bootstrap=bootstrap, seed=seed)
    if "unique" in runs:
        repeated = ((runs["unique"] > 0) & (d > REPEATED * runs["unique"])).to_numpy()  # 0: not known
        if repeated.any():
            times = (final["d"] / final["unique"].where(final["unique"] > 0)).to_numpy()
            said = f"{(times > REPEATED).sum()} of {len(final)} runs of {arch} saw tokens more than once (up to "
            said += f"{np.nanmax(times):.2f} times), which all fits but the data-constrained one take for new ones"
            report.note(f"{arch}, repeated tokens", RepeatedTokens.__name__, said)
            group.constrained = report.attempt(f"{arch}, data-constrained", _constrained, runs, repeated)
    if group.isoflop and group.parametric and group.parametric.intervals:
        one, other = group.parametric.intervals["a"], group.isoflop.intervals["a"]
        if one[1] < other[0] or other[1] < one[0]:
            report.note(
                f"{arch}, exponents", Disagreement.__name__,
                f"the exponent of N* is {one[0]:.3f} to {one[1]:.3f} by the parametric law, {other[0]:.3f} to "
                f"{other[1]:.3f} by IsoFLOP profiles: at least one of them does not describe these runs",
            )  # fmt: skip


def _compare(*args: Any, **options: Any) -> Comparison:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Extrapolation)  # said of each of the two already
        return compare(*args, **options)


def _constrained(runs: Frame, repeated: np.ndarray) -> DataConstrainedFit:
    """The worth of repetition, upon the law of the runs that repeat nothing."""
    rest = runs[~repeated]
    if repeated.sum() < 3 or len(rest) < 2 * len(NAMES):
        raise TooFewRuns(
            f"what repetition is worth needs 3 runs that repeat tokens and {2 * len(NAMES)} that do not, got "
            f"{repeated.sum()} and {len(rest)}"
        )
    law = fit_parametric(rest["n"], rest["d"], rest["loss"])
    return fit_data_constrained(runs["n"], runs["d"], runs["unique"], runs["loss"], base=law)


def _loss(group: Group, compute: float) -> float:
    assert group.parametric
    return float(group.parametric.optimum(compute, group.per_token).loss)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is no number."""
    return math.inf if loss > MOST_NATS else math.exp(loss)


def read_scores(path: str | Path, column: str | None = None) -> Frame:
    """arch and score of a CSV table: a leaderboard of ours, or any with an architecture and a score a row.

    Raises:
        ValueError: no such file, or columns, or scores that are no numbers.
    """
    file = csv_file(path, "leaderboard.csv")
    table = read_table(file)
    names = list(map(str, table))
    arch = next((name for name in ("arch", *ALIASES["arch"]) if name in names), None)
    score = column or next((name for name in SCORES if name in names), None)
    if arch is None or score not in names:
        missing = "arch" if arch is None else score or "score"
        raise ValueError(
            f"the table of scores {file} has no column {missing!r}{nearest(missing, names)}; it has: {', '.join(names)}"
        )
    found = table[[arch, score]].set_axis(["arch", "score"], axis=1).dropna()
    numbers: Frame = pd.to_numeric(found["score"], errors="coerce")
    wrong = found[~np.isfinite(numbers.astype(float))]
    if len(wrong):
        raise ValueError(
            f"column {score!r} of the table of scores {file} must hold finite numbers, got "
            f"{wrong['score'].iloc[0]!r} for {wrong['arch'].iloc[0]!r}"
        )
    return found.assign(score=numbers.astype(float))


def _correlate(report: Report, groups: list[Group], scores: Frame) -> Scores | None:
    """Perplexities at the budget of comparison, and their rank correlation with the scores."""
    mean = scores.groupby("arch")["score"].mean()
    known = [group for group in groups if group.arch in mean.index]
    if not known:
        report.note(
            "scores", TooFewRuns.__name__,
            f"no architecture has both a law and a score; laws: {', '.join(g.arch for g in groups) or 'none'}; scores: "
            f"{', '.join(map(str, mean.index))}",
        )  # fmt: skip
        return None
    rows = [
        {"arch": g.arch, "score": mean[g.arch], "perplexity": perplexity(_loss(g, report.compute))} for g in known
    ]  # fmt: skip
    points = pd.DataFrame(rows)
    repeats = [scores.loc[scores["arch"] == arch, "score"].to_numpy() for arch in points["arch"]]
    alike = len({len(values) for values in repeats}) == 1  # seeds: resampled too
    score = np.stack(repeats) if alike else points["score"].to_numpy()
    return Scores(
        points, report.compute, report.attempt("scores", rank_correlation, score, points["perplexity"].to_numpy())
    )


def to_json(value: Any) -> Any:
    """Results as plain values: NaN becomes null, infinities "inf" and "-inf"; samples of the bootstrap are left out."""
    if isinstance(value, Report):
        return {
            "compute": to_json(value.compute),
            "groups": {arch: to_json(group) for arch, group in value.groups.items()},
            **{key: to_json(getattr(value, key)) for key in ("state", "comparisons", "scores")},
            "notes": [note._asdict() for note in value.notes],
        }
    if isinstance(value, pd.DataFrame):
        return [to_json(row) for row in value.to_dict("records")]
    if dataclasses.is_dataclass(value):
        left_out = LEFT_OUT | (POINTS if isinstance(value, EnvelopeFit) else set())
        left_out |= {"parametric"} if isinstance(value, IsoflopFit) else set()  # the group's own
        plain = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in left_out}
        more = {"runs": len(value.final), "rows": len(value.runs)} if isinstance(value, Group) else {}
        exponents = {key: getattr(value, key) for key in ("a", "b") if isinstance(getattr(value, key, None), float)}
        return more | plain | exponents
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_json(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value
