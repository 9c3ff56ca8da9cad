"""Tables of runs as the sweeps of the published figures would leave them, with scores of one's choice."""

import itertools

import pandas as pd
import pytest

from mad import sweep
from mad.records import Record, table
from mad.reproduce.published import MAD_SETTINGS, PUBLISHED, read
from mad.training.prepare import build_task, cost


@pytest.fixture
def runs_of(expand):
    """(sweep, overrides) -> its records, every score 0.5; costs are the models' own where asked for."""

    def make(name, *overrides, costs=False):
        runs, _ = sweep.prepare(expand(f"sweeps={name}", *overrides))
        metrics = {"accuracy": 0.5, "macro_accuracy": 0.5, "batch_macro_accuracy": 0.5}
        return [
            Record(run.id, "ok", run.to_dict(), dict(metrics), cost=vars(cost(run, build_task(run))) if costs else {})
            for run in runs
        ]

    return make


@pytest.fixture
def table_of(runs_of):
    """The same as a table."""
    return lambda *given, **options: table(runs_of(*given, **options))


@pytest.fixture(scope="session")
def mad_table():
    """All 1,980 runs of the MAD table at the published scores, the best grid point at them and the others below."""
    theirs, about = read("mad_table").set_index("architecture"), PUBLISHED["mad_table"]
    rows = []
    for name, task in itertools.product(theirs.index, MAD_SETTINGS):
        options = MAD_SETTINGS[task]
        baseline = {column: values[0] for column, values in options.items()}
        settings = [baseline, *(baseline | {c: v} for c, values in options.items() for v in values[1:])]
        for setting, lr, decay in itertools.product(settings, about.lrs, about.weight_decays):
            score = theirs.loc[name, task] - (0.1 if lr < 1e-3 else 0)
            recipe = {column: value for column, value in about.recipe.items() if value is not None}
            rows.append(
                {"arch": name, "stack": theirs.loc[name, "layers"].replace(",", "-"), "task": task, "status": "ok"}
                | {"lr": lr, "weight_decay": decay, "seed": 0, "batch_macro_accuracy": score, "accuracy": score + 0.01}
                | setting | recipe
            )  # fmt: skip
    return pd.DataFrame(rows)
