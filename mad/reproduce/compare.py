"""Our runs beside the published scores: which run is behind which score, and whether it is all of them.

A *row* is one published score: of the MAD table an architecture's at a task (or the mean), of the MQAR figures a model
at a size. Ours is scored as theirs: of each setting the best of the optimiser grid on the test set, then the mean over
seeds and settings. A difference tells something where all settings and grid points are there and the recipe was kept;
else the row is *partial*.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mad import leaderboard
from mad.registry import nearest
from mad.reproduce import layout, published
from mad.reproduce.layout import Frame
from mad.reproduce.published import PUBLISHED, Published
from mad.scaling import RankCorrelation, rank_correlation

TOLERANCE = 0.03  # beyond which a difference asks for a reason
OTHERWISE = {"plain": "accuracy", "at_end": "last_batch_macro_accuracy"}  # a column of rows -> of runs: ours by another
EXTRAS = {
    "mad_table": OTHERWISE,
    "based_figure2": {"ours_bytes": "state_size"},
}  # score, or what else a row has of ours
VERDICTS = ("reproduced", "off", "partial", "no run", "not published")


@dataclass(frozen=True)
class Comparison:
    """Ours and theirs.

    Attributes:
        keys: the columns that say what a row is.
        rows: these, then ours, published, difference (ours minus published), settings and points (distinct ones with a
            result, of the seed that has fewest) and how many are expected of either, runs (those that count: in no
            place of the published grid they do only where a row has no other), verdict (of VERDICTS). Of the MAD table
            also plain (ours by plain accuracy), at_end (ours by the last evaluation) and perplexity (published); of
            BASED's figure ours_bytes and state_bytes (of the recurrent state at 1,024 tokens, 4 an element).
        departed: column of the recipe -> (our values, the published one).
        left_out: runs of other tasks.
        failed: runs without a result.
    """

    name: str
    keys: list[str]
    rows: pd.DataFrame
    departed: dict[str, tuple[list[Any], Any]]
    left_out: int
    failed: int

    @property
    def about(self) -> Published:
        return PUBLISHED[self.name]


def compare(name: str, table: pd.DataFrame) -> Comparison:
    """The runs of `table`, one row each, beside what `name` published.

    Args:
        table: as `mad.leaderboard.read` gives it; columns arch, task, stack, the published score, and what the recipe
            names, where there is any.

    Raises:
        ValueError: nothing of that name was published, or no run is of its tasks, or a column is missing.
    """
    theirs = published.read(name)
    about = PUBLISHED[name]
    mine: Frame = table[layout.BELONGS[name](table)].reset_index(drop=True)
    if mine.empty:
        raise ValueError(
            f"none of the {len(table)} runs is of {name} ({about.title}); expected those of sweeps=reproduce_{name}, "
            f"got the tasks {', '.join(sorted(set(table['task'].astype(str))))}"
        )
    missing = [f"{c!r}{nearest(c, map(str, mine))}" for c in layout.NEEDED[name] if c not in mine]
    if missing:
        raise ValueError(f"the table lacks {', '.join(missing)}, to tell models apart; got {', '.join(map(str, mine))}")
    scored = leaderboard.scored(mine, about.score)
    keys, rows, labels = layout.LAYOUT[name](theirs, mine, scored)
    runs = pd.concat([labels, scored.drop(columns=["arch", "task"])], axis=1)
    departed = {column: _departs(mine, column, value) for column, value in about.recipe.items()}
    runs["departs"] = np.any([*departed.values(), np.zeros(len(mine), bool)], axis=0)
    runs["point"] = _points(mine, about)
    for column, values in EXTRAS.get(name, {}).items():
        if values in mine:
            runs[column] = pd.to_numeric(mine[values], errors="coerce")

    ours = _measure(runs, [*keys, *(["width"] if "width" in labels else [])])
    # of several models in a row the one that is further through its grid, then the better
    ours = ours.sort_values(["points", "ours"], ascending=False, kind="stable").drop_duplicates(keys)
    rows = rows.merge(ours, on=keys, how="left")
    more = ours.merge(rows[keys], on=keys, how="left", indicator=True)
    rows = pd.concat([rows, more[more["_merge"] == "left_only"].drop(columns="_merge")], ignore_index=True)
    if name == "mad_table":
        rows = layout.with_means(rows)
    rows["points_expected"] = rows["settings_expected"] * about.points
    rows["difference"] = rows["ours"] - rows["published"]
    for column in ("settings", "points", "runs"):
        rows[column] = rows[column].fillna(0).astype(int)
    rows["verdict"] = [_verdict(row) for row in rows.to_dict("records")]
    unknown = pd.Series("not known", mine.index)
    found = {
        c: (sorted(mine.get(c, unknown)[d].unique(), key=str), about.recipe[c]) for c, d in departed.items() if d.any()
    }
    failed = int((scored["status"] == "failed").sum())
    rows = rows.drop(columns=["departs", "width"], errors="ignore")
    return Comparison(name, keys, rows, found, len(table) - len(mine), failed)


def _measure(runs: Frame, keys: list[str]) -> Frame:
    """Score and what is behind it, by the keys."""
    done = runs[runs["status"] != "failed"]
    placed = done["point"].notna()
    done = done[placed | ~placed.groupby([done[key] for key in keys], dropna=False).transform("any")]
    by = done.groupby(keys, dropna=False)
    found = pd.DataFrame({"ours": _score(done, keys, "score")})
    for column in (c for c in OTHERWISE if c in runs):
        scored = done.assign(**{column: done[column].mask(done["status"] == "diverged", 0.0)})
        found[column] = _score(scored, keys, column)
    if "ours_bytes" in runs:
        found["ours_bytes"] = 4 * by["ours_bytes"].max()
    found["settings"], found["runs"] = by["setting"].nunique(), by.size()
    each = done.groupby([*keys, "setting", "seed"], dropna=False)["point"].nunique()
    found["points"] = each.groupby([*keys, "setting"], dropna=False).min().groupby(keys, dropna=False).sum()
    found["departs"] = by["departs"].any()
    return found.reset_index()


def _score(runs: Frame, keys: list[str], column: str) -> Frame:
    """As the leaderboard has it: best of the grid, mean over seeds, mean over settings."""
    scores = runs.groupby([*keys, "setting", "seed"], dropna=False)[column].max()
    return scores.groupby([*keys, "setting"], dropna=False).mean().groupby(keys, dropna=False).mean()


def _points(table: Frame, about: Published) -> Frame:
    """Which point of the published grid a run is; NaN: none of them. A column that is missing decides nothing."""
    points = pd.Series("", table.index)
    for column, values in (("lr", about.lrs), ("weight_decay", about.weight_decays)):
        if column in table:
            near = {f"{value:.2e}" for value in values}  # a rate typed with three digits is that rate
            given: Frame = pd.to_numeric(table[column], errors="coerce")
            text = given.map(lambda value: f"{value:.2e}")
            points = points.where(text.isin(near)) + " " + text
    return points


def _departs(table: Frame, column: str, value: Any) -> Any:
    """Of each run, whether it has another value than the recipe, or does not say its own."""
    if column not in table:
        return np.full(len(table), value is not None)
    if value is None:
        return table[column].notna().to_numpy()
    if isinstance(value, (str, bool)):
        return (table[column].astype(str) != str(value)).to_numpy()
    given: Frame = pd.to_numeric(table[column], errors="coerce")
    return ~np.isclose(given, table["task.seq_len"].map(value) if isinstance(value, dict) else value)


def _verdict(row: dict[str, Any]) -> str:
    if pd.isna(row["published"]):
        return "not published"
    if pd.isna(row["ours"]):
        return "no run"
    whole = row["settings"] == row["settings_expected"] and row["points"] == row["points_expected"]
    if not whole or bool(row["departs"]):
        return "partial"
    return "reproduced" if abs(row["difference"]) <= TOLERANCE else "off"


def ranks(rows: Frame, column: str) -> RankCorrelation | None:
    """How the MAD scores in `column` (ours | published) rank the architectures by their published perplexity; None
    where fewer than three have a score, or all the same."""
    means = rows[(rows["task"] == layout.MEAN) & rows[column].notna() & rows["perplexity"].notna()]
    if len(means) < 3 or means[column].nunique() == 1:
        return None
    return rank_correlation(means[column], means["perplexity"], bootstrap=0)
