"""The figures of a scaling report, as one would print them: `for name, figure in draw(report): figure.savefig(...)`.

Architectures keep one colour throughout (Okabe and Ito's palette, told apart by the colour-blind), budgets go from dark
to light. Bars and bands are 95 % of the bootstrap. A figure whose fits were refused is not drawn.
"""

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mad.figures import COLORS, MARKERS, PANEL, STYLE
from mad.figures import log_axes as _log
from mad.figures import number as _number
from mad.scaling.parametric import optimum
from mad.scaling.report import Group, Report

NAMED = 8  # budgets in a legend, and entries in one that lies on a panel
ROW = 0.17  # inches of a legend below


def draw(report: Report) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of each figure that the report supports."""
    looks = {arch: (COLORS[i % 8], MARKERS[(i + i // 8) % 8]) for i, arch in enumerate(report.groups)}
    for name, function, given in _figures(report):
        if given:
            with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
                yield name, function(given, looks)


def supported(report: Report) -> list[str]:
    """Their names."""
    return [name for name, _, given in _figures(report) if given]


def _figures(report: Report) -> tuple[tuple[str, Any, list[Any]], ...]:
    """Of each figure its name, the function that draws it, and what of the report."""
    groups = list(report.groups.values())
    lawful = [g for g in groups if g.parametric]
    return (
        ("isoflop", _isoflop, [g for g in groups if g.isoflop]),
        ("optima", _optima, [g for g in groups if g.isoflop or g.parametric]),
        ("contours", _contours, lawful),
        ("residuals", _residuals, lawful),
        ("holdout", _holdout, [g for g in groups if g.holdout]),
        ("envelope", _envelope, [g for g in groups if g.envelope]),
        ("repetition", _repetition, [g for g in groups if g.constrained]),
        ("state", _state, [report.state] if report.state else []),
        ("scores", _scores, [report.scores] if report.scores else []),
    )


def _panels(count: int, columns: int = 3, height: float = PANEL) -> tuple[Figure, list[Axes]]:
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL * columns * 1.15, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for extra in axes[count:]:
        extra.set_visible(False)
    return figure, axes[:count]


def _legend(figure: Figure, axes: Axes) -> None:
    """The legend of a panel: on it, or below all panels where it would cover this one."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= NAMED:
        axes.legend()
        return
    columns = int(figure.get_figwidth() / (0.45 + 0.075 * max(map(len, labels)))) or 1
    figure.set_figheight(figure.get_figheight() + ROW * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _rounded(compute: float) -> str:
    return _number(float(f"{compute:.2g}"))


def _power(left: str, right: str, exponent: float) -> str:
    return rf"${left}\propto {right}^{{{exponent:.2f}}}$"


def _interval(at: float, ends: tuple[float, float] | None) -> Any:
    """Lengths of an error bar, (2, 1); None without an interval. A vertex may lie outside its own percentiles."""
    return None if ends is None else np.array([[max(0, at - ends[0])], [max(0, ends[1] - at)]])


def _isoflop(groups: list[Group], looks: dict) -> Figure:
    """Loss against size at each budget, with the parabola and its vertex."""
    figure, panels = _panels(len(groups))
    for axes, group in zip(panels, groups, strict=True):
        assert group.isoflop
        n, loss = (group.final[key].to_numpy() for key in ("n", "loss"))
        vertices = group.isoflop.vertices
        shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(vertices)))
        every = -(-len(vertices) // NAMED)
        for k, (vertex, shade) in enumerate(zip(vertices, shades, strict=True)):
            label = None if k % every else _rounded(vertex.compute)
            axes.plot(n[vertex.rows], loss[vertex.rows], "o", color=shade, label=label)
            if np.isfinite(vertex.parabola).all():
                x = np.linspace(np.log(n[vertex.rows].min()), np.log(n[vertex.rows].max()), 100)
                line = "-" if vertex.reason is None else ":"
                axes.plot(np.exp(x), np.polyval(vertex.parabola, x), line, color=shade)
            if vertex.reason is None:
                bars = {
                    "xerr": _interval(vertex.n, vertex.intervals.get("n")),
                    "yerr": _interval(vertex.loss, vertex.intervals.get("loss")),
                }
                axes.errorbar(
                    vertex.n, vertex.loss, **bars, fmt="*", ms=9, color=shade, mec="black", mew=0.6, capsize=2, zorder=5
                )
        axes.set_title(f"{group.arch}: {_power('N^*', 'C', group.isoflop.a)}")
        axes.set_ylabel("loss (nats per token)")
        _log(axes, "parameters")
        axes.legend(title="training FLOPs", title_fontsize=8, ncols=2)
    return figure


def _optima(groups: list[Group], looks: dict) -> Figure:
    """N*, D* and D*/N* against compute: vertices, their power law, and the parametric law with its band."""
    figure, panels = _panels(3)
    for group in groups:
        color, marker = looks[group.arch]
        compute = group.runs["compute"]
        budgets = np.geomspace(compute.min(), compute.max(), 60)
        if group.parametric:
            best = group.parametric.optimum(budgets, group.per_token)
            drawn = optimum(group.parametric.samples, budgets, group.per_token)
            lines, bands = ((o.n, o.d, o.d / o.n) for o in (best, drawn))
            for axes, y, band in zip(panels, lines, bands, strict=True):
                axes.plot(budgets, y, color=color, label=f"{group.arch}, parametric" if axes is panels[0] else None)
                if len(band):
                    ends = np.percentile(band, [2.5, 97.5], axis=0)
                    axes.fill_between(budgets, *ends, color=color, alpha=0.12, lw=0)
        if group.isoflop:
            used = group.isoflop.used
            laws = [law.predict(budgets) for law in (group.isoflop.n_law, group.isoflop.d_law)]
            for axes, y in zip(panels, (*laws, laws[1] / laws[0]), strict=True):
                axes.plot(budgets, y, "--", color=color, lw=1)
            for v in used:
                for axes, key in zip(panels, ("n", "d"), strict=False):
                    bar = _interval(getattr(v, key), v.intervals.get(key))
                    axes.errorbar(v.compute, getattr(v, key), yerr=bar, fmt=marker, color=color, capsize=2)
            panels[0].plot([], [], "--", marker=marker, color=color, lw=1, label=f"{group.arch}, IsoFLOP")
            panels[2].plot([v.compute for v in used], [v.d / v.n for v in used], marker, color=color)
    for axes, label in zip(panels, ("N* (parameters)", "D* (tokens)", "D*/N* (tokens per parameter)"), strict=True):
        _log(axes, "training FLOPs", label)
    _legend(figure, panels[0])
    return figure


def _contours(groups: list[Group], looks: dict) -> Figure:
    """The fitted loss over size and compute, the runs, and the frontier of compute-optimal sizes."""
    figure, panels = _panels(len(groups))
    for axes, group in zip(panels, groups, strict=True):
        assert group.parametric
        runs = group.runs
        n = np.geomspace(runs["n"].min() / 1.3, runs["n"].max() * 1.3, 120)
        compute = np.geomspace(runs["compute"].min() / 1.3, runs["compute"].max() * 1.3, 120)
        loss = group.parametric.predict(n[:, None], compute / (group.per_token * n[:, None]))
        low, high = np.percentile(runs["loss"], [1, 99])
        levels = np.geomspace(low * 0.99, high * 1.01, 11)
        shown = axes.contour(compute, n, loss, levels=levels, cmap="viridis", linewidths=0.8)
        axes.clabel(shown, fontsize=6, fmt="%.2f")
        axes.plot(runs["compute"], runs["n"], ".", color="0.45", ms=3, label="runs")
        best = group.parametric.optimum(compute, group.per_token).n
        axes.plot(
            compute, best, color=looks[group.arch][0], lw=2, label=f"frontier, {_power('N^*', 'C', group.parametric.a)}"
        )
        axes.set_title(group.arch)
        axes.set_xlim(compute[0], compute[-1])
        axes.set_ylim(n[0], n[-1])
        _log(axes, "training FLOPs", "parameters")
        axes.legend(loc="upper left")
    return figure


def _residuals(groups: list[Group], looks: dict) -> Figure:
    """What the parametric law leaves unexplained, against size, tokens and compute."""
    figure, panels = _panels(3)
    for axes, key, label in zip(panels, ("n", "d", "compute"), ("parameters", "tokens", "training FLOPs"), strict=True):
        for group in groups:
            assert group.parametric
            color, marker = looks[group.arch]
            off = 100 * np.log(group.parametric.predict(group.runs["n"], group.runs["d"]) / group.runs["loss"])
            axes.plot(group.runs[key], off, marker, color=color, alpha=0.7, label=group.arch)
        axes.axhline(0, color="black", lw=0.8)
        _log(axes, label)
    panels[0].set_ylabel("predicted over observed loss (%)")
    _legend(figure, panels[0])
    return figure


def _holdout(groups: list[Group], looks: dict) -> Figure:
    """The largest budget's runs beside what the law of the smaller budgets says of them."""
    figure, panels = _panels(len(groups))
    for axes, group in zip(panels, groups, strict=True):
        assert group.holdout
        held = group.holdout
        color, marker = looks[group.arch]
        runs = group.final.nlargest(len(held.errors), "compute")
        n, d, loss = (runs[key].to_numpy() for key in ("n", "d", "loss"))
        order = np.argsort(n)
        axes.plot(n, loss, marker, color=color, label="observed")
        axes.plot(n[order], held.fit.predict(n, d)[order], "--", color="black", label="predicted")
        axes.set_title(f"{group.arch} at {_rounded(held.compute)} FLOPs: error {100 * held.rmse:.1f} %")
        axes.set_ylabel("loss (nats per token)")
        _log(axes, "parameters")
        axes.legend()
    return figure


def _envelope(groups: list[Group], looks: dict) -> Figure:
    """The training curves, and the best of them at each compute."""
    figure, panels = _panels(len(groups))
    for axes, group in zip(panels, groups, strict=True):
        assert group.envelope
        for _, curve in group.runs.sort_values("compute").groupby("run"):
            axes.plot(curve["compute"], curve["loss"], color="0.7", lw=0.6)
        axes.plot(group.envelope.compute, group.envelope.loss, color=looks[group.arch][0], lw=2)
        axes.set_title(f"{group.arch}: {_power('N^*', 'C', group.envelope.a)}, {group.envelope.winners} runs win")
        _log(axes, "training FLOPs", "loss (nats per token)")
    return figure


def _repetition(groups: list[Group], looks: dict) -> Figure:
    """How much worse the best fit gets as R_D*, or R_N*, is held at a value: flat means not identified."""
    figure, panels = _panels(2)
    for group in groups:
        assert group.constrained
        color, best = looks[group.arch][0], group.constrained.objective
        for axes, key in zip(panels, ("rd", "rn"), strict=True):
            profile = getattr(group.constrained, f"profile_{key}")
            axes.plot(profile[:, 0], profile[:, 1] / best, color=color, label=group.arch)
            axes.plot(getattr(group.constrained, key), 1, "*", color=color, ms=9, mec="black", mew=0.6)
    for axes, label in zip(panels, ("$R_D^*$ (repetitions)", "$R_N^*$ (excess parameters)"), strict=True):
        axes.set_ylim(0.995, 1.25)
        _log(axes, label)
    panels[0].set_ylabel("objective over the best")
    _legend(figure, panels[0])
    return figure


def _state(fits: list[Any], looks: dict) -> Figure:
    """Perplexity against the state of the compute-optimal models, with the common slope."""
    (fit,) = fits
    figure, (axes,) = _panels(1, height=PANEL)
    figure.set_size_inches(1.4 * PANEL, 1.1 * PANEL)
    for name, points in fit.points.groupby("class", sort=True):
        color, marker = looks[points["arch"].iloc[0]]
        x = np.geomspace(points["state_size"].min(), points["state_size"].max(), 20)
        axes.plot(x, fit.predict(name, x), color=color, lw=1)
        axes.plot(points["state_size"], points["perplexity"], marker, color=color, label=name)
    front = fit.points[fit.points["frontier"]].sort_values("state_size")
    axes.step(front["state_size"], front["perplexity"], where="post", color="0.5", lw=0.8, ls=":", label="frontier")
    low, high = fit.interval
    axes.set_title(f"{_power('P^*', 'M', fit.slope)} (95 %: {low:.2f} to {high:.2f})")
    _log(axes, "state size M (elements)", "perplexity P*")
    _legend(figure, axes)
    return figure


def _scores(given: list[Any], looks: dict) -> Figure:
    """Does the score predict the compute-optimal perplexity?"""
    (scores,) = given
    figure, (axes,) = _panels(1)
    figure.set_size_inches(1.4 * PANEL, 1.1 * PANEL)
    for row in scores.points.itertuples():
        color, marker = looks[row.arch]
        axes.plot(row.score, row.perplexity, marker, color=color, ms=6)
        axes.annotate(row.arch, (row.score, row.perplexity), xytext=(5, 4), textcoords="offset points", fontsize=8)
    found = scores.correlation
    if found:
        axes.set_title(f"Spearman {found.spearman:.2f}, p = {found.spearman_p:.3g}, {found.n} architectures")
    axes.set_xlabel("MAD score")
    axes.margins(0.15)
    axes.set_ylabel(f"perplexity P* at {_rounded(scores.compute)} FLOPs")
    return figure
