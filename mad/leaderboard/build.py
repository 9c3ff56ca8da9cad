"""The arithmetic of the leaderboard.

A *setting* is a task with its options, amount of data and training budget; every architecture meets it at each point
of the optimiser grid (all `optim.*`, lr and weight decay), perhaps with several seeds.

    score of a setting and seed   best of the optimiser grid, by final test score
    score of a setting            mean over its seeds
    score of a task               mean over its settings
    mean                          mean over the tasks
    win rate                      share of the other architectures that a setting's score beats, ties counting half,
                                  averaged over the settings that the architecture and another one have a score in

Best of the grid on the test set is how the MAD protocol scores; `mean_valid_selected` is the same with the best point
chosen on the validation split, its test score reported.

A diverged run scores 0: that this grid point does not train is a result, and it decides only where nothing better is
in the setting. A failed run scores nothing, for its cause may be the machine: a setting that has only failed runs is
missing, as one that was not run is. An architecture with missing settings is not comparable with the others. It stands
below them; `settings_done` and `settings_total` say what is missing, and it has no mean while a whole task is.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from mad.leaderboard.scores import check_score, score_of
from mad.registry import nearest, unknown

REQUIRED = ("arch", "task")
BUDGET = ("train.epochs", "train.steps", "train.tokens", "train.budget_flops")
SETTING = ("train.num_train", "train.num_test", *BUDGET, "train.batch_size")
# and all of task.*; what is left of train.* (precision, how often is evaluated) is not part of the problem
COST = ("params", "flops", "state_size")
STATUSES = ("ok", "diverged", "failed")
DIGITS = 9  # to which scores are equal: the mean of three is not the same in another order
HEAD = ("rank", "arch", "mean", "mean_std", "mean_valid_selected", "win_rate")  # columns of a board, then its tasks
TAIL = (*COST, "settings_done", "settings_total", *STATUSES, "complete")

Frame = Any  # a data frame or series: which one, pandas' own annotations leave open too often to be checked


def build(table: pd.DataFrame, score: str | None = None) -> pd.DataFrame:
    """Rank architectures.

    Args:
        table: one row a run. Columns `arch`, `task` and the score are needed; `status` (ok | diverged | failed; ok
            where there is none or the cell is empty), `lr`, `weight_decay`, `seed`, `task.*`, `train.*`, `arch.*`,
            `stack`, `params`, `flops`, `state_size` and `valid_<score>` are used where there are any.
        score: accuracy | macro_accuracy | batch_macro_accuracy, or another column, higher is better. None:
            `train.score` of the runs, or accuracy.

    Returns:
        One row an architecture, best first, complete ones before others. Columns: rank (of complete rows), arch,
        mean, mean_std, mean_valid_selected, win_rate (0 to 1; NaN of one alone); for each task its score and
        `<task>_std` (over the seeds, NaN below two seeds); params, flops, state_size (each the largest over the
        settings: of the longest sequences, the largest vocabulary); settings_done, settings_total; ok, diverged,
        failed (numbers of runs).

    Raises:
        ValueError: the table is empty, lacks a column or a name, its runs were scored in different ways, or the score
            is one of which less is better, or none.
    """
    runs: Frame = scored(table, score)
    best = _by_setting(runs["score"], runs)
    board = _average(best)
    board["mean_valid_selected"] = _average(_by_setting(_selected(runs), runs))["mean"]
    board["win_rate"] = _win_rate(best.mean(axis=1))

    board = board.reindex(sorted(runs["arch"].unique()))  # an architecture whose runs all failed has a row too
    for column in COST:
        if column in table:
            board[column] = _numbers(table[column]).groupby(runs["arch"]).max()
    board["settings_done"] = best.notna().any(axis=1).groupby(level="arch").sum()
    board["settings_total"] = runs["setting"].nunique()
    for status in STATUSES:
        board[status] = (runs["status"] == status).groupby(runs["arch"]).sum()

    board["complete"] = board["settings_done"] == board["settings_total"]
    by = ["complete", "mean", "arch"]
    board = board.rename_axis(index="arch", columns=None).reset_index()
    board = board.sort_values(by, ascending=[False, False, True], key=lambda column: column.round(DIGITS))
    complete = board.pop("complete")
    board.insert(0, "rank", complete.cumsum().where(complete).astype("Int64"))
    tasks = [f"{task}{suffix}" for task in sorted(runs["task"].unique()) for suffix in ("", "_std")]
    head = [*HEAD, *tasks]
    return board.reindex(columns=[*head, *board.columns.difference(head, sort=False)]).reset_index(drop=True)


def scored(table: pd.DataFrame, score: str | None = None) -> Any:
    """arch (a row of the leaderboard), task, setting (number), seed, status, score and valid (the scores as they count)
    of each run of `table`; arguments and errors as of `build`."""
    if table.empty:
        raise ValueError("the table holds no runs; expected one row a run")
    score = score or score_of(table)
    check_score(table, score)
    if score not in table and "ok" not in set(_statuses(table)):
        table = table.assign(**{score: float("nan")})  # no run came to an evaluation; a divergence is a zero below
    needed = (*REQUIRED, score)
    missing = [f"{column!r}{nearest(column, map(str, table))}" for column in needed if column not in table]
    if missing:
        raise ValueError(
            f"the table lacks the column {' and '.join(missing)}; expected at least {', '.join(needed)}, "
            f"got {', '.join(map(str, table))}"
        )
    check_named(table, "the table")
    runs = _runs(table, score)
    if (infinite := runs["score"].isin([float("inf"), -float("inf")])).any():
        arch, task = runs.loc[infinite.idxmax(), ["arch", "task"]]
        raise ValueError(
            f"the {score} of {arch} at {task} is infinite; expected a number, or none of a run that failed"
        )
    check_tasks(runs["task"].unique())
    return runs


def check_tasks(names: Iterable[str]) -> None:
    """Whether a leaderboard can have a column, and one for the spread, of each of these tasks. Raises ValueError for
    the first that it cannot."""
    names = sorted(names)
    spreads = {f"{name}_std" for name in names}
    for name in names:
        if name in (*HEAD, *TAIL) or name in spreads:
            raise ValueError(f"a task cannot be called {name!r} here: a leaderboard has a column of that name")


def check_named(table: Frame, where: str) -> None:
    """Whether each row of `table`, from `where`, has its architecture and task. Raises ValueError for the first that
    has not."""
    for column in REQUIRED:
        if column in table and (empty := table[column].isna().to_numpy()).any():
            row = f"row {empty.argmax() + 1} of {len(table)}"
            raise ValueError(f"{where} has no {column} in {row}; expected {' and '.join(REQUIRED)} of each run")


def task_columns(board: pd.DataFrame) -> list[str]:
    """The tasks of a board, which each have a column for the score and one for its spread."""
    columns = [str(c) for c in board]
    return [c for c in columns[columns.index("win_rate") + 1 :] if f"{c}_std" in columns]


def stacks(table: Frame) -> dict[str, str]:
    """The stack of each row of the leaderboard, where the runs have one; one that follows the task is the first's."""
    if "stack" not in table:
        return {}
    return table["stack"].dropna().astype(str).groupby(_labels(table)).first().to_dict()


def problems(table: Frame) -> Frame:
    """What a setting is: the task of each run, its options, and the columns SETTING, as far as there are any.

    Data that come with a digest are what it says, wherever they lay: the path is another from machine to machine.
    Of a corpus a budget of tokens or FLOPs takes as many sequences as it comes to, or all there are: more for a small
    model than for a large one. That number is the budget's doing, and no setting of its own.
    """
    columns = [c for c in table if isinstance(c, str) and (c.startswith("task.") or c in SETTING)]
    found = table[["task", *columns]].copy()
    if "task.path" in found and "task.digest" in found:
        found["task.path"] = found["task.path"].mask(found["task.digest"].notna())
    batch, taken = (_numbers(found.get(f"train.{key}", _none(table))) for key in ("batch_size", "num_train"))
    steps = _numbers(found.get("train.tokens", _none(table))) / (batch * _numbers(table.get("seq_len", _none(table))))
    flops = 3 * batch * _numbers(table.get("flops", _none(table)))
    steps = steps.fillna(_numbers(found.get("train.budget_flops", _none(table))) / flops)
    if "train.num_train" in found:
        needed, most = steps.round().clip(lower=1) * batch, taken.groupby(table["task"]).transform("max")
        found["train.num_train"] = found["train.num_train"].mask((taken == needed) | (taken == most) & (taken < needed))
    return found


def _settings(table: Frame) -> Frame:
    """The number of each run's setting."""
    given = problems(table)
    return given.groupby(list(given), dropna=False, sort=False).ngroup()


def _runs(table: Frame, score: str) -> Frame:
    """arch (label), task, setting (number), seed, status, score, valid of each run."""
    runs = pd.DataFrame({"arch": _labels(table), "task": table["task"].astype(str)})
    runs["setting"] = _settings(table)
    seeds = table.get("seed", pd.Series(0, table.index))
    runs["seed"] = seeds.fillna(-1 if pd.api.types.is_numeric_dtype(seeds) else "none")
    runs["status"] = _statuses(table)
    for status in runs["status"].unique():
        if status not in STATUSES:
            raise unknown("status", status, STATUSES)
    diverged, failed = runs["status"] == "diverged", runs["status"] == "failed"
    runs["score"] = _numbers(table[score]).mask(diverged, 0.0).mask(failed)
    valid = table.get(f"valid_{score}", _none(table))
    runs["valid"] = _numbers(valid).mask(diverged, 0.0).mask(failed)
    return runs


def _statuses(table: Frame) -> Frame:
    """That of each run; where nothing is said all went well."""
    return table["status"].fillna("ok").replace("", "ok") if "status" in table else pd.Series("ok", table.index)


def _none(table: Frame) -> Frame:
    """A column that the table lacks."""
    return pd.Series(float("nan"), table.index)


def _numbers(column: Frame) -> Frame:
    """Floats; NaN for what is no number."""
    return pd.to_numeric(column, errors="coerce")


def _labels(table: Frame) -> Frame:
    """The rows of the leaderboard: names, and where one name stands for several models, what tells them apart: options,
    the text of the plugins that define them, the rule by which an evaluation is reported.

    `arch.max_length` follows the task and tells nothing, unless one setting has several: see `_with_length`.
    """
    labels = table["arch"].astype(str)
    for column in table:
        model = str(column).startswith("arch.") and column != "arch.max_length"
        # the same model by another rule, or another text of a plugin, is no point of the same grid
        if model or column in ("stack", "train.report", "versions.plugins"):
            several = table.groupby("arch")[column].transform("nunique", dropna=False) > 1
            key = str(column).removeprefix("arch.").removeprefix("versions.")
            said = table[column].notna()  # else the bare name: of failed runs of a mad before they said their plugins
            labels = labels.mask(several & said, labels + f" {key}=" + _texts(table[column]))
    return _with_length(labels, table) if "arch.max_length" in table else labels


def _texts(column: Frame) -> Frame:
    """Its values as labels have them; of whole numbers alone 64 for 64.0: where another table lacks the column, they
    are floats."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all() and (column.abs().max() < 2**53):
        column = column.astype("Int64")
    return column.astype(str)


def _with_length(labels: Frame, table: Frame) -> Frame:
    """Labels of models that meet one setting with several lengths, for which filters and positions are made, tell which
    it is. Where the shortest differs from setting to setting it may be the task's own: it stays without."""
    lengths = _numbers(table["arch.max_length"])
    settings = [labels, _settings(table)]
    several = (lengths.groupby(settings).transform("nunique") > 1).groupby(labels).transform("any")
    shortest = lengths.groupby(settings).transform("min")
    chosen = (lengths != shortest) | (shortest.groupby(labels).transform("nunique") == 1)
    text = labels + " max_length=" + lengths.astype("Int64").astype(str)
    return labels.mask(several & chosen & lengths.notna(), text)


def _selected(runs: Frame) -> Frame:
    """Test scores of the runs that are best on the validation split; NaN elsewhere. Ties go to the lower test score.

    A group of runs of which one has a test score but no validation score has no selection.
    """
    keys = ["arch", "setting", "seed"]
    ordered = runs.sort_values(["valid", "score"], ascending=[False, True])
    chosen = ordered.groupby(keys, dropna=False, sort=False).head(1)
    blind = (runs["score"].notna() & runs["valid"].isna()).groupby([runs[key] for key in keys], dropna=False)
    return runs["score"].where(runs.index.isin(chosen.index) & ~blind.transform("any"))


def _by_setting(scores: Frame, runs: Frame) -> Frame:
    """The best score of each (arch, task, setting), one column a seed."""
    keys = [runs[key] for key in ("arch", "task", "setting", "seed")]
    return scores.groupby(keys, dropna=False).max().unstack("seed")


def _average(best: Frame) -> Frame:
    """Mean and spread of each task, and over the tasks, of each architecture."""
    seeds = best.mean(axis=1).groupby(level=["arch", "task"]).mean().unstack("task")
    # a seed's own score of a task counts for the spread where it has all settings that any seed has
    each = best[best.notna().any(axis=1)].groupby(level=["arch", "task"]).agg(lambda column: column.mean(skipna=False))
    spread = each.std(axis=1).unstack("task").add_suffix("_std")
    board = seeds.join(spread)
    board["mean"] = seeds.mean(axis=1, skipna=False)
    board["mean_std"] = each.groupby(level="arch").agg(lambda column: column.mean(skipna=False)).std(axis=1)
    return board


def _win_rate(scores: Frame) -> Frame:
    """Of each architecture; `scores` by (arch, task, setting)."""
    settings = scores.dropna().round(DIGITS).groupby(level=["task", "setting"])
    beaten = settings.rank(method="average") - 1  # equals share the mean of their ranks: each is half a win
    others = settings.transform("size") - 1
    return (beaten / others.where(others > 0)).groupby(level="arch").mean()
