"""What a leaderboard may rank by: columns of numbers, the better the higher. Counts and options would rank too, and the
board would look well."""

import difflib
from typing import Any

import pandas as pd

from mad.records import COST

CONFIG = ("task.", "arch.", "optim.", "train.", "versions.")
PLAIN = ("arch", "task", "stack", "status", "lr", "weight_decay", "seed", "run_id")  # of a run, as configuration is
LOWER = ("loss", "perplexity", "bits_per_byte", "seconds", "steps", "params", "flops", "state_size")
SPENT = (*COST, "setup_seconds", "reported_step")  # of a run or its model
PARTS = ("valid_", "train_", "batch_")  # of valid_loss, ... less is better as well

Frame = Any  # as in build


def score_of(table: Frame) -> str:
    """What the runs themselves were scored by."""
    used = sorted(table["train.score"].dropna().unique()) if "train.score" in table else []
    if len(used) > 1:
        raise ValueError(
            f"the runs were scored by {' and '.join(used)}; choose one: --score {used[0]} (in Python score={used[0]!r})"
        )
    return used[0] if used else "accuracy"


def check_score(table: Frame, score: str) -> None:
    """Whether the column `score` of `table`, if it is there, can be ranked by.

    Raises:
        ValueError: less of it is better, or it is configuration, a cost or a text; the message names what could be.
    """
    if _plain(score) in LOWER:
        raise ValueError(
            f"of {score!r} less is better, and a leaderboard ranks by what is the better the higher (and counts a "
            "divergence as 0); expected a score as accuracy, macro_accuracy; for losses: python -m mad.scaling"
        )
    if score in table and (_is_about(score) or not _numbers(table[score]).any() and table[score].notna().any()):
        what = "configuration or a cost" if _is_about(score) else "no column of numbers"
        scores = [c for c in table if isinstance(c, str) and not _is_about(c) and _plain(c) not in LOWER]
        scores = [c for c in scores if table[c].notna().any() and _numbers(table[c])[table[c].notna()].all()]
        nearest = difflib.get_close_matches(score, scores, n=len(scores) or 1, cutoff=0.0)
        raise ValueError(f"{score!r} is {what}; expected a score, one of: {', '.join(nearest) or 'none is there'}")


def _numbers(column: Frame) -> Frame:
    """Which cells are."""
    numbers: Frame = pd.to_numeric(column, errors="coerce")
    return numbers.notna()


def _is_about(column: str) -> bool:
    return column.startswith(CONFIG) or column in (*PLAIN, *SPENT)


def _plain(column: str) -> str:
    for part in PARTS:
        column = column.removeprefix(part)
    return column
