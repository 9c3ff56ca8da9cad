"""Scaling laws from any table of runs, with intervals, diagnostics, and a refusal where the data cannot carry them.

    fit = fit_parametric(n, d, loss, bootstrap=1000)       L = E + A / n^alpha + B / d^beta
    fit.optimum(1e21), fit.intervals["a"]

    fit_isoflop, fit_envelope                              the two other ways to compute-optimal sizes
    fit_data_constrained                                   what repeated tokens are worth
    fit_state_optimal                                      perplexity against state size
    compare, holdout, rank_correlation, fit_power_law

Reads tables alone: any CSV with the right columns will do, whoever wrote it. `python -m mad.scaling TABLE.csv` does all
that a table supports.
"""

from mad.scaling.checks import (
    Checkpoints,
    Disagreement,
    DuplicatedRuns,
    Edge,
    Extrapolation,
    NarrowSpan,
    NoFloor,
    NoInteriorMinimum,
    NoInterval,
    NotFinite,
    Refused,
    RepeatedTokens,
    ScalingWarning,
    TooFewBudgets,
    TooFewRuns,
    Unbounded,
    Units,
)
from mad.scaling.compare import Comparison, Holdout, compare, holdout
from mad.scaling.constrained import DataConstrainedFit, fit_data_constrained
from mad.scaling.envelope import EnvelopeFit, fit_envelope
from mad.scaling.isoflop import IsoflopFit, Vertex, fit_isoflop
from mad.scaling.parametric import Optimum, ParametricFit, fit_parametric
from mad.scaling.power import PowerLaw, fit_power_law
from mad.scaling.rank import RankCorrelation, rank_correlation
from mad.scaling.state import StateOptimalFit, fit_state_optimal
from mad.scaling.table import read, standard

__all__ = [
    "Checkpoints", "Comparison", "DataConstrainedFit", "Disagreement", "DuplicatedRuns", "Edge", "EnvelopeFit",
    "Extrapolation", "Holdout", "IsoflopFit", "NarrowSpan", "NoFloor", "NoInteriorMinimum", "NoInterval", "NotFinite",
    "Optimum", "ParametricFit", "PowerLaw", "RankCorrelation", "Refused", "RepeatedTokens", "ScalingWarning",
    "StateOptimalFit", "TooFewBudgets", "TooFewRuns", "Unbounded", "Units", "Vertex", "compare", "fit_data_constrained",
    "fit_envelope", "fit_isoflop", "fit_parametric", "fit_power_law", "fit_state_optimal", "holdout",
    "rank_correlation", "read", "standard",
]  # fmt: skip
