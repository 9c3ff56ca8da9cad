"""`python -m mad.scaling TABLE.csv`: every scaling law that a table of runs supports, as tables, JSON and figures."""

import argparse
import json
import math
import shlex
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import mad
from mad.records import save as save_text
from mad.scaling.checks import ScalingWarning
from mad.scaling.report import Group, Report, make, perplexity, read_scores, to_json
from mad.scaling.table import ALIASES, read

LAWS = ("arch", "runs", "E", "A", "B", "alpha", "beta", "a (parametric)", "a (IsoFLOP)", "its bias", "hold-out error")
KINDS = ("png", "pdf")  # of files, for each figure
WIDE = 160  # columns of text where the output is no terminal


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, 2 for a mistake in the command, a table that holds no runs, or files that cannot be written."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    console = Console(
        markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else WIDE
    )  # names as they are
    try:
        _check(options)
        columns = _columns(options.columns)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = read(options.table, columns, options.group)
            scores = read_scores(options.scores, options.score_column) if options.scores else None
        report = make(table, scores=scores, at=options.at, bootstrap=options.bootstrap, seed=options.seed)
        for warning in caught:
            if issubclass(warning.category, ScalingWarning):
                report.note("table", warning.category.__name__, str(warning.message))
    except (ValueError, OSError) as error:
        print(f"mad.scaling: {error}", file=sys.stderr)
        return 2
    show(report, table, options.table, console)
    given_folder = Path(options.table) if Path(options.table).is_dir() else Path(options.table).parent
    folder = Path(options.out) if options.out else given_folder / "scaling"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = write(report, table, options, folder, shlex.join(["python", "-m", "mad.scaling", *given]))
    except OSError as error:
        reason = f"{error.filename or folder} cannot be written ({error.strerror or error})"
        print(f"mad.scaling: {reason}; choose another folder for fits.json and figures: --out DIR", file=sys.stderr)
        return 2
    console.print(f"written to {folder}: {', '.join(files)}", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    known = "; ".join(f"{name} ({', '.join(others)})" for name, others in ALIASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m mad.scaling",
        description="Fit scaling laws to a table of runs, one row a run: compute-optimal (parametric, IsoFLOP, and the "
        "envelope where rows are checkpoints), data-constrained, state-optimal; compare architectures; hold out the "
        "largest budget. What the data cannot carry is refused, and said.",
        epilog=f"Columns looked for, upper or lower case: {known}. Two of n, d and compute are enough: C = 6 n d.",
    )
    parser.add_argument("table", metavar="TABLE", help="a CSV file, or a results folder: its records are read")
    parser.add_argument(
        "--columns", nargs="+", action="extend", default=[], metavar="NAME=COLUMN", help="what the table calls a column"
    )
    parser.add_argument("--group", metavar="COLUMN", help="the column that tells architectures apart (arch)")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: scaling/ beside the table)")
    parser.add_argument("--at", type=float, metavar="FLOPS", help="compare here (default: the largest common budget)")
    parser.add_argument("--scores", metavar="FILE", help="a table of MAD scores: do they predict the perplexity?")
    parser.add_argument("--score-column", metavar="COLUMN", help="its column (mean)")
    parser.add_argument("--bootstrap", type=int, metavar="N", help="resamples (1000, for large tables fewer; 0: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (0)")
    parser.add_argument("--no-figures", action="store_true", help="write fits.json alone")
    return parser


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise ValueError(f"--columns takes NAME=COLUMN, as n=params, got {pair!r}")
        if name in columns:
            raise ValueError(f"--columns gives {name} twice, as {columns[name]!r} and as {column!r}")
        columns[name] = column
    return columns


def _check(options: argparse.Namespace) -> None:
    if options.at is not None and not 0 < options.at < math.inf:
        raise ValueError(f"--at must be a positive number of FLOPs, got {options.at}")
    if options.bootstrap is not None and options.bootstrap < 0:
        raise ValueError(f"--bootstrap must be at least 0, got {options.bootstrap}")
    if options.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {options.seed}")
    if options.score_column is not None and options.scores is None:
        raise ValueError(f"--score-column {options.score_column} is a column of --scores FILE, which is not given")


def show(report: Report, table: Any, source: str, console: Console) -> None:
    """Print the report: a row an architecture, then what goes across them, then every refusal and warning."""
    origin = ", ".join(f"{k} = {v}" for k, v in table.attrs["columns"].items() if v not in (k, "derived"))
    runs = sum(len(group.final) for group in report.groups.values())
    checkpoints = "" if runs == len(table) else f", {_count(len(table), 'checkpoint')},"
    console.print(
        f"{source}: {_count(runs, 'run')}{checkpoints} of {_count(len(report.groups), 'architecture')}"
        f"{'; ' if origin else ''}{origin}",
        soft_wrap=True,
    )  # fmt: skip
    laws = Table(title="L = E + A / N^alpha + B / D^beta,   N* ~ C^a,   D* ~ C^b;   [95 %]")
    for head in LAWS:
        laws.add_column(head, justify="left" if head == "arch" else "right")
    for group in report.groups.values():
        laws.add_row(*_row(group))
    console.print(laws)
    best = Table(title=f"Compute-optimal at {report.compute:.3g} FLOPs")
    heads = ["arch", "loss", "perplexity", "N*", "D*", "tokens per parameter"]
    for head in [*heads, "the best one's loss needs"] if report.comparisons else heads:
        best.add_column(head, justify="left" if head == "arch" else "right")
    against = {c.b: c for c in report.comparisons}
    for group in sorted((g for g in report.groups.values() if g.parametric), key=lambda g: g.arch in against):
        best.add_row(*_optimum(group, report.compute, against.get(group.arch)))
    if best.rows:
        console.print(best)
    for group in report.groups.values():
        if group.envelope:
            fit = group.envelope
            console.print(
                f"envelope, {group.arch}: a = {fit.a:.3f}{_interval(fit.n_law.interval)}, from {len(fit.compute)} "
                f"points of {_count(fit.winners, 'run')}",
            )
        if group.constrained:
            (low_d, high_d), (low_n, high_n) = (group.constrained.plausible()[key] for key in ("rd", "rn"))
            console.print(
                f"repeated tokens, {group.arch}: R_D* = {group.constrained.rd:.3g}, R_N* = {group.constrained.rn:.3g}; "
                f"within 5 % of the best objective {low_d:.3g} to {high_d:.3g} and {low_n:.3g} to {high_n:.3g}",
            )
    if report.state:
        (low, high), p = report.state.interval, report.state.p
        test = "" if math.isnan(p) else f"; a slope for each class instead: F test p = {p:.2g}"
        console.print(f"state-optimal: P* ~ M^{report.state.slope:.3f} [{low:.3f}, {high:.3f}]{test}")
    if report.scores and report.scores.correlation:
        found = report.scores.correlation
        interval = found.refused or "interval [{:.2f}, {:.2f}]".format(*(found.interval or ()))
        console.print(
            f"scores against perplexity: Spearman {found.spearman:.3f} (p = {found.spearman_p:.3g}), Kendall "
            f"{found.kendall:.3f} (p = {found.kendall_p:.3g}); {interval}",
        )
    for note in report.notes:
        said = Text.assemble((note.kind, "yellow"), f" ({note.where}): {note.message}")
        console.print(said, soft_wrap=True)


def _row(group: Group) -> list[str]:
    law, profiles, held = group.parametric, group.isoflop, group.holdout
    cells = [group.arch, str(len(group.final))]
    cells += [f"{v:.4g}" for v in (law.E, law.A, law.B, law.alpha, law.beta)] if law else ["refused", *[""] * 4]
    for fit in (law, profiles):
        cells.append(f"{fit.a:.3f}{_interval(fit.intervals.get('a'))}" if fit else "refused")
    cells.append(f"{profiles.bias['a']:+.3f}" if profiles and profiles.bias else "")
    return [*cells, f"{100 * held.rmse:.2f} %" if held else "refused"]


def _optimum(group: Group, compute: float, against: Any) -> list[str]:
    assert group.parametric
    best = group.parametric.optimum(compute, group.per_token)
    cells = [group.arch, f"{best.loss:.4f}", f"{perplexity(best.loss):.3f}", f"{best.n:.3g}", f"{best.d:.3g}"]
    needs = [f"{against.multiplier:.3g} times the compute{_interval(against.multiplier_interval)}"] if against else []
    return [*cells, f"{best.d / best.n:.1f}", *needs]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None or math.isnan(ends[0]) else f" [{ends[0]:.3g}, {ends[1]:.3g}]"


def write(report: Report, table: Any, options: argparse.Namespace, folder: Path, command: str) -> list[str]:
    """fits.json with where it is from, and each figure as PNG and PDF; what became of which files. Figures of another
    table, which fits.json says that there are, go: beside these fits they would be taken for theirs."""
    drawn = []
    if not options.no_figures:
        from mad.scaling.figures import draw, supported  # matplotlib takes its time

        drawn = supported(report)
    about = {
        "command": command,
        "table": {"sha256": table.attrs["sha256"], "rows": len(table)},
        "columns": table.attrs["columns"],
        "figures": drawn,
        "mad": mad.__version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    stale = _figures_of_another(folder, about["table"]["sha256"]) - set(drawn)
    text = json.dumps(about | to_json(report), indent=1, allow_nan=False)
    save_text(folder / "fits.json", text + "\n")
    done = ["fits.json"]
    if drawn:
        from mad.figures import save

        for name, figure in draw(report):
            for kind in KINDS:
                save(figure, folder / f"{name}.{kind}")
            done.append(f"{name}.png and .pdf")
    for name in sorted(stale):
        for kind in KINDS:
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
        done.append(f"without {name}.png and .pdf of another table")
    return done


def _figures_of_another(folder: Path, sha256: str) -> set[str]:
    """The names of the figures in `folder` that an earlier command drew of another table."""
    try:
        before = json.loads((folder / "fits.json").read_text(encoding="utf-8"))
        return set(before["figures"]) if before["table"]["sha256"] != sha256 else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # none is there, or one of before that was written down


if __name__ == "__main__":
    sys.exit(main())
