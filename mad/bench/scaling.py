"""What fitting scaling laws costs on this machine: one fit, intervals, a large table, a whole report.

Tables are drawn from a known law with 1 % noise: 240 rows as Chinchilla's, and 100,000. Seconds are the fastest of
several runs. How far the fitted exponent is from the truth stands beside them.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from mad import scaling
from mad.scaling.report import make

TRUTH = {"A": 480.0, "B": 2100.0, "E": 1.82, "alpha": 0.35, "beta": 0.365}
EXPONENT = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
ROWS, LARGE, RESAMPLES = 240, 100_000, 4000


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench scaling", description=__doc__)
    parser.add_argument("--table", metavar="FILE", help="a table of your own in place of the 240 drawn rows")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the fastest is shown (default 3)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    warnings.simplefilter("ignore", scaling.ScalingWarning)
    try:
        small = scaling.read(args.table) if args.table else scaling.standard(drawn(ROWS))
    except ValueError as error:
        parser.error(str(error))
    table = Table("what", title=f"{len(small)} rows" + ("" if args.table else f", true exponent a {EXPONENT:.4f}"))
    for title in ("seconds", "a", "standard error of a"):
        table.add_column(title, justify="right", no_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.csv"
        drawn(LARGE).to_csv(large, index=False)
        for what, function in cases(small, large):
            table.add_row(what, *measure(function, args.repeats))
    Console().print(table)


def cases(small: Any, large: Path) -> list[tuple[str, Callable[[], Any]]]:
    """(what, function): a table in memory, and the file of another one."""

    def fit(table: Any = small, **options: Any) -> scaling.ParametricFit:
        return scaling.fit_parametric(table["n"], table["d"], table["loss"], **options)

    objectives = ("huber", "lad", "log_mse", "mse")
    return [
        *((f"parametric, {objective}", partial(fit, objective=objective)) for objective in objectives),
        (f"parametric, huber, {RESAMPLES} resamples", partial(fit, bootstrap=RESAMPLES)),
        ("all that the table supports, 1000 resamples", partial(make, small)),
        (f"read a CSV of {LARGE:,} rows and fit it", lambda: fit(scaling.read(large))),
    ]


def measure(function: Callable[[], Any], repeats: int) -> list[str]:
    seconds, result = [], None
    for _ in range(repeats):
        began = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - began)
    if not isinstance(result, scaling.ParametricFit):
        return [f"{min(seconds):.3f}", "", ""]
    return [f"{min(seconds):.3f}", f"{result.a:.4f}", f"{result.standard_errors['a']:.4f}"]


def drawn(rows: int, noise: float = 0.01) -> pd.DataFrame:
    """Runs of sizes 4e7 to 2e10 and 1 to 300 tokens a parameter, their losses from TRUTH with noise."""
    rng = np.random.default_rng(0)
    n = np.exp(rng.uniform(np.log(4e7), np.log(2e10), rows))
    d = n * np.exp(rng.uniform(0, np.log(300), rows))
    loss = TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss * np.exp(noise * rng.standard_normal(rows))})
