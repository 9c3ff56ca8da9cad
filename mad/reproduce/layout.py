"""What the rows of each published table or figure are, which runs belong to it, and to which row a run belongs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from mad.reproduce import stacks
from mad.reproduce.published import MAD_SETTINGS

MEAN = "mean"  # in place of a task
BASED_TEST = "[[64, 4, 1000], [64, 8, 1000], [64, 16, 1000], [128, 32, 1000], [256, 64, 1000], [512, 128, 1000], "
BASED_TEST += "[1024, 256, 1000]]"

Frame = Any  # see mad.leaderboard.build


def _mad_table(theirs: Frame, table: Frame, scored: Frame) -> tuple[list[str], Frame, Frame]:
    """Rows: an architecture at a task."""
    models = {row["architecture"]: stacks.plain(row["layers"].split(",")) for row in theirs.to_dict("records")}
    labels = _models(table, models)[["model"]].assign(task=scored["task"])
    rows = theirs.rename(columns={"architecture": "model", "compute_optimal_pile_ppl": "perplexity"})
    rows = rows.melt(["model", "perplexity"], list(MAD_SETTINGS), var_name="task", value_name="published")
    rows["settings_expected"] = rows["task"].map(_settings_of)
    order = {name: place for place, name in enumerate(theirs["architecture"])}
    return ["model", "task"], rows.sort_values("model", key=lambda c: c.map(order), kind="stable"), labels


def with_means(rows: Frame) -> Frame:
    """A row more for each architecture: the mean over all six tasks, ours where it has all."""
    found = []
    for model, own in rows.groupby("model", sort=False):
        whole = set(own["task"]) == set(MAD_SETTINGS)
        mean = {key: own[key].mean() if whole and own[key].notna().all() else np.nan
                for key in ("ours", "plain", "at_end", "published", "perplexity") if key in own}  # fmt: skip
        counts = {key: own[key].sum() for key in ("settings", "points", "runs")}
        departs = own["departs"].isin([True]).any()  # NaN where there is no run
        more = {"model": model, "task": MEAN, "settings_expected": sum(map(_settings_of, MAD_SETTINGS))}
        found += [own, pd.DataFrame([more | mean | counts | {"departs": departs}])]
    return pd.concat(found, ignore_index=True)


def _based_figure2(theirs: Frame, table: Frame, scored: Frame) -> tuple[list[str], Frame, Frame]:
    """Rows: a model, its width and its knob; where the knob holds the width, without it. Then several of our models may
    be in a row, told apart by the label `width`."""
    rows = theirs.rename(columns={"accuracy": "published"}).assign(knob=theirs["knob"].fillna(""))
    rows["d_model"] = rows["d_model"].astype("Int64")
    labels = _models(table, stacks.BASED)
    labels["d_model"] = table["arch.dim"].astype("Int64").mask(labels["model"].map(stacks.by_width))
    labels["width"] = table["arch.dim"]
    return ["model", "d_model", "knob"], rows.assign(settings_expected=1), labels


def _zoology_figure2(theirs: Frame, table: Frame, scored: Frame) -> tuple[list[str], Frame, Frame]:
    """Rows: a model at a length (with its number of pairs) and a width."""
    sizes = {"seq_len": "task.seq_len", "num_kv": "task.num_kv", "d_model": "arch.dim"}
    labels = _models(table, stacks.ZOOLOGY).assign(**{key: table[column].astype(int) for key, column in sizes.items()})
    rows = theirs.rename(columns={"accuracy": "published"}).assign(settings_expected=1)
    return ["model", *sizes], rows, labels[["model", *sizes]]


def _models(table: Frame, models: dict[str, stacks.Model]) -> Frame:
    """model and knob of each run; of no published model its own name, which is not to be taken for one."""
    dims = table["arch.dim"] if "arch.dim" in table else pd.Series(0, table.index)
    found = [
        (None if pd.isna(dim) else stacks.model_of(stack, models, int(dim)))
        or (f"{arch} (other layers)" if arch in models else str(arch), "")
        for stack, arch, dim in zip(table["stack"], table["arch"], dims, strict=True)
    ]
    return pd.DataFrame(found, columns=["model", "knob"], index=table.index)


def _settings_of(task: str) -> int:
    """A baseline, and one change at a time."""
    return 1 + sum(len(values) - 1 for values in MAD_SETTINGS[task].values())


def _is_mad(table: Frame) -> Frame:
    """At a setting of the protocol."""
    found = pd.Series(False, table.index)
    for task, options in MAD_SETTINGS.items():
        changes, known = pd.Series(0, table.index), table["task"] == task
        for column, values in options.items():
            if column in table:
                given: Frame = pd.to_numeric(table[column], errors="coerce")
                known, changes = known & given.isin(values), changes + (given != values[0])
        found |= known & (changes <= 1)
    return found


def _is_based(table: Frame) -> Frame:
    """Accuracies over another mixture of lengths are others."""
    return _column(table, "task.test_segments").astype(str) == BASED_TEST


def _is_zoology(table: Frame) -> Frame:
    single = (table["task"] == "mqar") & _column(table, "task.segments").isna()
    zeros = _column(table, "task.random_filler").astype(str) == "False"
    return single & zeros & (_column(table, "task.vocab_size") == 8192)


def _column(table: Frame, name: str) -> Frame:
    return table[name] if name in table else pd.Series(np.nan, table.index)


NEEDED = {
    "mad_table": ("stack",), "based_figure2": ("stack", "arch.dim"),
    "zoology_figure2": ("stack", "arch.dim", "task.seq_len", "task.num_kv"),
}  # fmt: skip
BELONGS: dict[str, Callable[[Frame], Frame]] = {
    "mad_table": _is_mad, "based_figure2": _is_based, "zoology_figure2": _is_zoology
}  # fmt: skip
LAYOUT: dict[str, Callable[[Frame, Frame, Frame], tuple[list[str], Frame, Frame]]] = {
    "mad_table": _mad_table, "based_figure2": _based_figure2, "zoology_figure2": _zoology_figure2
}  # fmt: skip
