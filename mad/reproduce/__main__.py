"""`python -m mad.reproduce NAME`: a published table or figure beside our runs, with the differences."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mad import leaderboard
from mad.registry import unknown
from mad.reproduce import PUBLISHED, Comparison, compare
from mad.reproduce.compare import TOLERANCE, ranks
from mad.reproduce.layout import MEAN

WIDE = 160  # columns of text where the output is no terminal
SUFFIXES = {"png": (".png", ".pdf", ".svg"), "csv": (".csv",)}
HEADS = {"d_model": "width", "seq_len": "tokens", "num_kv": "pairs", "plain": "plain accuracy", "at_end": "at the end",
         "ours_bytes": "bytes", "state_bytes": "published bytes"}  # fmt: skip
HIDDEN = ("perplexity", "runs", "settings", "settings_expected", "points", "points_expected")  # in the CSV, or combined


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, 2 for a mistake in the command or a table that holds no runs of that figure."""
    parser = argparse.ArgumentParser(
        prog="python -m mad.reproduce",
        description="Print a published table or figure beside our runs of it, and draw it with both.",
        epilog="; ".join(f"{name}: {about.title} ({about.source})" for name, about in PUBLISHED.items()),
    )
    parser.add_argument("name", metavar="NAME", help=" | ".join(PUBLISHED))
    parser.add_argument(
        "table", nargs="?", metavar="TABLE",
        help="a results folder, or a CSV file with one row a run (default: results/reproduce_NAME, or its _reduced)",
    )  # fmt: skip
    parser.add_argument("--png", metavar="FILE", help="draw the figure; also .pdf and .svg")
    parser.add_argument("--csv", metavar="FILE", help="write all rows and columns as CSV")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    try:
        if options.name not in PUBLISHED:
            raise unknown("reproduction", options.name, PUBLISHED)
        for kind, suffixes in SUFFIXES.items():
            if getattr(options, kind):
                leaderboard.check_file(f"--{kind}", getattr(options, kind), suffixes)
        source, *others = [options.table] if options.table else _defaults(options.name)
        for kind in SUFFIXES:
            if getattr(options, kind):
                leaderboard.check_kept(f"--{kind}", getattr(options, kind), [source])
        comparison = compare(options.name, leaderboard.read([source]))
        show(comparison, source, console)
        for other in others:
            said = f"- {other} is there too: python -m mad.reproduce {options.name} {other}"
            console.print(said, soft_wrap=True, markup=False)
        if options.csv:
            leaderboard.write_csv(comparison.rows, options.csv)
        if options.png:
            from mad.reproduce.figures import write  # matplotlib takes its time

            write(comparison, options.png)
    except (ValueError, OSError) as error:
        print(f"mad.reproduce: {error}", file=sys.stderr)
        return 2
    return 0


def _defaults(name: str) -> list[str]:
    """The folders of the figure's sweeps that are there, the one to show first."""
    folders = [f"results/reproduce_{name}{kind}" for kind in ("", "_reduced")]
    if there := [folder for folder in folders if Path(folder).is_dir()]:
        return there
    raise ValueError(
        f"neither {folders[0]} nor {folders[1]} is there; expected a results folder or a CSV file, or train one: "
        f"python -m mad.sweep sweeps=reproduce_{name}_reduced"
    )


def show(comparison: Comparison, source: str, console: Console) -> None:
    """Print the rows that we have or could have, then what is partial, missing, or not theirs."""
    rows: Any = comparison.rows
    console.print(f"{source}: {comparison.about.source}", soft_wrap=True, markup=False)
    shown = rows[rows["verdict"] != "no run"]
    columns = [*comparison.keys, *(c for c in rows if c not in (*comparison.keys, *HIDDEN, "verdict"))]
    columns = [c for c in columns if rows[c].notna().any()]
    table = Table(title=escape(comparison.about.title))
    shares = [what for what in ("settings", "points") if rows[f"{what}_expected"].max() > 1]
    for column in (*columns, *shares, "verdict"):
        left = column in ("model", "task", "knob", "verdict")
        table.add_column(HEADS.get(column, column), justify="left" if left else "right", overflow="fold")
    for row in shown.to_dict("records"):
        done = [_share(row[what], row[f"{what}_expected"]) for what in shares]
        cells = [*(_cell(column, row[column]) for column in columns), *done, row["verdict"]]
        table.add_row(*map(escape, cells), end_section=row.get("task") == MEAN)
    console.print(table)
    for note in notes(comparison):
        console.print(f"- {note}", soft_wrap=True, markup=False)


def notes(comparison: Comparison) -> list[str]:
    """What the table does not say."""
    rows: Any = comparison.rows
    counts = rows["verdict"].value_counts()
    said = [
        f"of {rows['published'].notna().sum()} published values {counts.get('reproduced', 0)} are reproduced within "
        f"{TOLERANCE}, {counts.get('off', 0)} are off, {counts.get('partial', 0)} are partial: runs are missing, or "
        "the recipe is another, and the difference tells little"
    ]
    for column in ("published", "ours") if comparison.name == "mad_table" else ():
        found = ranks(rows, column)
        if found:
            said.append(
                f"{column} mean against perplexity, {found.n} architectures: Spearman {found.spearman:.2f} "
                f"(p = {found.spearman_p:.2g}), Kendall {found.kendall:.2f} (p = {found.kendall_p:.2g})"
            )
    for verdict, text in (
        ("no run", "published, and not run yet"),
        ("not published", "run, and not published"),
    ):
        models = rows[rows["verdict"] == verdict].groupby("model", sort=False).size()
        if len(models):
            said.append(f"{text}: {', '.join(f'{model} ({count})' for model, count in models.items())}")
    for column, (ours, theirs) in comparison.departed.items():
        values = ", ".join("none" if pd.isna(value) else str(value) for value in ours)
        said.append(f"recipe: {column} is {values}, published {'none' if theirs is None else theirs}")
    if comparison.left_out:
        said.append(f"{comparison.left_out} runs are of other tasks or settings and left out")
    if comparison.failed:
        said.append(f"{comparison.failed} runs failed and score nothing; the sweep's command tries them again")
    return [*said, *(f"unlike the published code: {text}" for text in comparison.about.departures)]


def _cell(column: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if column == "difference":
        return f"{value:+.3f} {'!' if abs(value) > TOLERANCE else ' '}"
    if column in ("ours_bytes", "state_bytes"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _share(done: int, expected: float) -> str:
    return f"{done}" if pd.isna(expected) else f"{done}/{expected:.0f}"


if __name__ == "__main__":
    sys.exit(main())
