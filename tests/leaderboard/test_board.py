"""The leaderboard's arithmetic, by hand-computed examples, its outputs and its command."""

import io
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mad import leaderboard
from mad.config import Run
from mad.leaderboard.__main__ import main
from mad.leaderboard.render import amount
from mad.records import Record, Store


def row(arch: Any = "a", task: Any = "copy", accuracy: Any = 0.5, **fields: Any) -> dict:
    defaults = {"status": "ok", "lr": 1e-3, "weight_decay": 0.0, "seed": 0}
    return {"arch": arch, "task": task, "accuracy": accuracy, **defaults, **fields}


def build(*rows: dict, **options: Any) -> Any:
    """The board, by architecture."""
    return leaderboard.build(pd.DataFrame(list(rows)), **options).set_index("arch")


def test_best_of_the_grid_then_mean_over_settings_then_mean_over_tasks():
    board = build(
        row(accuracy=0.1, lr=1e-4, weight_decay=0.0, **{"task.seq_len": 32}),
        row(accuracy=0.4, lr=1e-4, weight_decay=0.1, **{"task.seq_len": 32}),
        row(accuracy=0.2, lr=1e-3, weight_decay=0.1, **{"task.seq_len": 32}),
        row(accuracy=0.8, **{"task.seq_len": 64}),
        row(accuracy=1.0, task="mqar"),
    )
    assert board.loc["a", "copy"] == pytest.approx(0.6)  # (0.4 + 0.8) / 2
    assert board.loc["a", "mqar"] == 1.0
    assert board.loc["a", "mean"] == pytest.approx(0.8)  # of the tasks, not of the three settings
    assert (board.loc["a", "settings_done"], board.loc["a", "settings_total"]) == (3, 3)


@pytest.mark.parametrize(
    ("column", "settings"),
    [
        ("task.seq_len", 2),
        ("train.num_train", 2),
        ("train.epochs", 2),
        ("train.tokens", 2),
        ("train.budget_flops", 2),
        ("optim.schedule", 1),
        ("lr", 1),
        ("train.precision", 1),
        ("device", 1),
    ],
)
def test_a_setting_is_the_task_its_data_and_its_budget(column, settings):
    board = build(row(accuracy=0.2, **{column: 1}), row(accuracy=0.6, **{column: 2}))
    assert board.loc["a", "settings_total"] == settings
    assert board.loc["a", "copy"] == pytest.approx(0.4 if settings == 2 else 0.6)


def test_how_many_sequences_a_budget_of_a_corpus_comes_to_is_no_setting():
    """Two models, two budgets, batches of 4: num_train follows from them. Where it does not, it is a setting."""
    budgets = {"train.budget_flops": [1200.0, 2400.0], "train.tokens": [400, 800]}
    for key, (one, two) in budgets.items():
        taken = {"a": (40, 80), "b": (20, 40)} if key == "train.budget_flops" else dict.fromkeys("ab", (20, 40))
        rows = [
            row(arch, "text", 0.1 * i, **{key: budget, "train.num_train": taken[arch][i], "train.batch_size": 4})
            | {"flops": 10 if arch == "a" else 20, "seq_len": 20}
            for arch in "ab"
            for i, budget in enumerate((one, two))
        ]
        board = build(*rows)
        assert board["settings_total"].tolist() == [2, 2] and board["rank"].notna().all()
        if key == "train.budget_flops":  # 400 sequences of one model, where there are 300, and 200 of the other
            most = [rows[i] | {key: 12000.0, "train.num_train": n} for i, n in ((1, 300), (3, 200))]
            board = build(*rows, *most)
            assert board["settings_total"].tolist() == [3, 3] and board["rank"].notna().all()
        assert build(*rows, rows[0] | {"train.num_train": 16})["settings_total"].tolist() == [3, 3]


def test_runs_without_an_evaluation_score_zero_where_they_diverged():
    rows = [{"arch": arch, "task": "t", "status": status} for arch, status in (("a", "diverged"), ("b", "failed"))]
    board = build(*rows)
    assert board["t"].to_dict() == {"a": 0.0, "b": pytest.approx(math.nan, nan_ok=True)}
    with pytest.raises(ValueError, match="lacks the column 'accuracy'"):
        build(rows[0] | {"status": "ok"})


def test_seeds_are_averaged_and_their_spread_is_the_standard_deviation():
    board = build(
        *(row(accuracy=score, seed=seed, lr=lr) for seed, lr, score in [(0, 1, 0.1), (0, 2, 0.3), (1, 1, 0.5)]),
        *(row(task="mqar", accuracy=score, seed=seed) for seed, score in [(0, 0.6), (1, 0.8)]),
    )
    assert board.loc["a", "copy"] == pytest.approx(0.4)  # best of the grid is taken for each seed: 0.3 and 0.5
    assert board.loc["a", "copy_std"] == pytest.approx(math.sqrt(0.02))
    assert board.loc["a", "mean"] == pytest.approx(0.55)
    assert board.loc["a", "mean_std"] == pytest.approx(math.sqrt(0.02))  # of 0.45 and 0.65
    assert math.isnan(build(row())["copy_std"].iloc[0])


def test_a_seed_that_lacks_a_setting_has_no_part_in_the_spread():
    first, second = {"task.seq_len": 32}, {"task.seq_len": 64}
    board = build(row(accuracy=0.2, **first), row(accuracy=0.4, seed=1, **first), row(accuracy=0.6, **second))
    assert board.loc["a", "copy"] == pytest.approx(0.45) and math.isnan(board.loc["a", "copy_std"])


def test_a_diverged_run_scores_zero_and_decides_only_where_it_is_alone():
    board = build(
        row("a", accuracy=0.9, status="diverged"),
        row("a", accuracy=0.3, lr=1e-4),
        row("b", accuracy=0.9, status="diverged"),
    )
    assert board["copy"].to_dict() == {"a": 0.3, "b": 0.0}
    assert board["rank"].to_dict() == {"a": 1, "b": 2}
    assert board["diverged"].to_dict() == {"a": 1, "b": 1} and board["ok"].to_dict() == {"a": 1, "b": 0}


def test_a_failed_run_scores_nothing():
    board = build(row("a", accuracy=0.1), row("b", accuracy=0.9, status="failed"))
    assert math.isnan(board.loc["b", "copy"]) and math.isnan(board.loc["b", "mean"])
    assert board.loc["b", ["settings_done", "settings_total", "failed"]].tolist() == [0, 1, 1]
    assert list(board.index) == ["a", "b"] and pd.isna(board.loc["b", "rank"])


def test_an_incomplete_row_stands_below_the_complete_ones_without_a_rank():
    short, long = {"task.seq_len": 32}, {"task.seq_len": 64}
    board = build(
        row("easy only", accuracy=1.0, **short),
        row("all", accuracy=0.9, **short),
        row("all", accuracy=0.1, **long),
        row("one task", task="mqar", accuracy=1.0),
        row("all", task="mqar", accuracy=0.2),
        row("easy only", task="mqar", accuracy=1.0),
    )
    assert list(board.index) == ["all", "easy only", "one task"]
    assert board["rank"].dropna().to_dict() == {"all": 1}
    assert board["settings_done"].tolist() == [3, 2, 1] and set(board["settings_total"]) == {3}
    assert board.loc["easy only", "mean"] == 1.0 and math.isnan(board.loc["one task", "mean"])


def test_selection_on_the_validation_split_reports_the_test_score_of_the_selected():
    board = build(
        row(accuracy=0.9, lr=1, valid_accuracy=0.2),
        row(accuracy=0.5, lr=2, valid_accuracy=0.6),
        row(accuracy=0.4, lr=3, valid_accuracy=0.6),  # a tie goes to the lower test score
        row(accuracy=None, lr=4, status="diverged"),
    )
    assert (board.loc["a", "mean"], board.loc["a", "mean_valid_selected"]) == (0.9, 0.4)
    assert math.isnan(build(row())["mean_valid_selected"].iloc[0])
    partly = build(row(accuracy=0.9, lr=1), row(accuracy=0.5, lr=2, valid_accuracy=0.6))
    assert math.isnan(partly["mean_valid_selected"].iloc[0])


def test_the_score_is_the_one_the_runs_were_scored_by():
    both = row(accuracy=0.2, macro_accuracy=0.7)
    assert build(both)["copy"].iloc[0] == 0.2
    assert build(both, score="macro_accuracy")["copy"].iloc[0] == 0.7
    assert build(both | {"train.score": "macro_accuracy"})["copy"].iloc[0] == 0.7
    with pytest.raises(ValueError, match="macro_accuracy; choose one: --score accuracy .in Python score='accuracy'."):
        build(both | {"train.score": "macro_accuracy"}, both | {"train.score": "accuracy"})


def test_runs_reported_by_different_rules_do_not_share_a_row():
    rules = {"last": 0.5, "lowest_perplexity": 0.9}
    board = build(*(row(accuracy=score) | {"train.report": rule} for rule, score in rules.items()))
    assert board["mean"].to_dict() == {f"a train.report={rule}": score for rule, score in rules.items()}


@pytest.mark.parametrize("column", ["tokens", "setup_seconds", "task.vocab_size", "lr", "seq_len", "reported_step"])
def test_what_is_no_score_is_not_ranked_by_though_it_is_a_number(column):
    table = row(valid_accuracy=0.5, macro_accuracy=0.4, device="cpu") | {column: 5}
    with pytest.raises(ValueError, match=f"'{column}' is configuration or a cost; expected a score, one of: [a-z]"):
        build(table, score=column)
    with pytest.raises(ValueError, match="'device' is no column of numbers; expected a score, one of: [a-z]") as error:
        build(table, score="device")
    named = str(error.value).partition("one of: ")[2].split(", ")
    assert sorted(named) == ["accuracy", "macro_accuracy", "valid_accuracy"]
    assert build(row() | {"solved": True, column: 5}, score="solved")["mean"].tolist() == [1.0]


def test_valid_scores_are_named_nearest_first():
    scores = {"accuracy": 0.5, "train_tokens_right": 0.1, "tokens": 9}
    with pytest.raises(ValueError, match="one of: train_tokens_right, accuracy"):
        build(row() | scores, score="tokens")


def test_one_corpus_at_two_paths_is_one_setting_and_two_are_two():
    def text(arch, path, digest, accuracy):
        return row(arch, "text", accuracy) | {"task.path": path, "task.digest": digest}

    board = build(text("a", "c.txt", "1f", 0.5), text("b", "/data/c.txt", "1f", 0.4), text("b", None, "1f", 0.3))
    assert board["rank"].tolist() == [1, 2] and set(board["settings_total"]) == {1}
    assert board["win_rate"].tolist() == [1.0, 0.0]
    assert set(build(text("a", "c.txt", "1f", 0.5), text("b", "c.txt", "2e", 0.4))["settings_total"]) == {2}
    unknown = [text("a", path, None, 0.5) for path in ("c.txt", "d.txt")]  # nothing says that they are one
    assert build(*unknown)["settings_total"].tolist() == [2]


def test_the_win_rate_is_the_share_of_the_others_beaten_averaged_over_settings():
    rng = np.random.default_rng(0)
    scores = {
        (arch, task, length, seed): float(rng.choice([0.0, 0.25, 0.5, 0.75]))
        for arch in "abcde"
        for task, length in (("copy", 1), ("copy", 2), ("mqar", 1))
        for seed in (0, 1)
        if (arch, task, length) not in (("a", "copy", 1), ("b", "mqar", 1))
    }
    scores |= {("a", "alone", 1, 0): 1.0}
    board = build(
        *(row(a, task, score, seed=s, **{"task.seq_len": n}) for (a, task, n, s), score in scores.items()),
        *(row("b", "mqar", 0.9, seed=s, status="failed", **{"task.seq_len": 1}) for s in (0, 1)),
    )
    for arch in "abcde":
        shares = []
        for task, length in {(task, n) for a, task, n, _ in scores if a == arch}:
            own = {a: [scores[k] for k in scores if k[:3] == (a, task, length)] for a in "abcde"}
            means = {a: sum(values) / len(values) for a, values in own.items() if values}
            others = [a for a in means if a != arch]
            if others:
                wins = sum(1.0 if means[arch] > means[a] else 0.5 if means[arch] == means[a] else 0.0 for a in others)
                shares.append(wins / len(others))
        assert board.loc[arch, "win_rate"] == pytest.approx(sum(shares) / len(shares)), arch
    assert math.isnan(build(row())["win_rate"].iloc[0])
    assert build(row("x"), row("y"))["win_rate"].tolist() == [0.5, 0.5]


def test_costs_are_the_largest_over_the_settings():
    board = build(
        row(params=10, flops=100, state_size=5, **{"task.seq_len": 1}),
        row(params=20, flops=90, state_size=None, **{"task.seq_len": 2}),
    )
    assert board.loc["a", ["params", "flops", "state_size"]].tolist() == [20, 100, 5]


def test_one_name_for_several_models_is_several_rows():
    board = build(
        row("hyena", accuracy=0.1, stack="hyena", **{"arch.dim": 64, "arch.max_length": 32}),
        row("hyena", accuracy=0.2, stack="hyena", **{"arch.dim": 128, "arch.max_length": 64}),
        row("other", accuracy=0.3, stack="mlp", **{"arch.dim": 64}),
    )
    assert list(board.index) == ["other", "hyena dim=128", "hyena dim=64"]


def of_length(length: Any, seq_len: int, accuracy: float, arch: str = "hyena") -> dict:
    return row(arch, accuracy=accuracy, **{"arch.max_length": length, "task.seq_len": seq_len})


def test_a_length_that_follows_the_task_is_no_model_of_its_own():
    board = build(of_length(32, 32, 0.2), of_length(64, 64, 0.4), of_length(np.nan, 64, 0.1))
    assert list(board.index) == ["hyena"] and board.loc["hyena", "settings_done"] == 2


def test_one_setting_at_several_lengths_is_several_models():
    board = build(
        *(of_length(n, seq_len, n / 256) for n in (64, 128) for seq_len in (32, 64)),
        of_length(32, 32, 0.9, "other"),
        of_length(64, 64, 0.9, "other"),
    )
    assert list(board.index) == ["other", "hyena max_length=128", "hyena max_length=64"]
    assert board["copy"].tolist() == [0.9, 0.5, 0.25] and set(board["settings_done"]) == {2}


def test_beside_lengths_that_follow_the_task_one_that_was_asked_for_is_told():
    board = build(of_length(32, 32, 0.2), of_length(64, 64, 0.4), of_length(128, 32, 0.1), of_length(128, 64, 0.1))
    assert board["copy"].round(6).to_dict() == {"hyena": 0.3, "hyena max_length=128": 0.1}


def test_any_table_with_the_three_columns_will_do():
    board = build({"arch": "x", "task": "t", "accuracy": "0.25"}, {"arch": "y", "task": "t", "accuracy": "0.5"})
    assert board["t"].to_dict() == {"y": 0.5, "x": 0.25}


def test_missing_columns_are_named_with_those_expected():
    with pytest.raises(ValueError) as error:
        build({"architecture": "x", "task": "t", "acuracy": 1.0})
    message = str(error.value)
    assert "'arch' (did you mean 'architecture'?)" in message and "'accuracy' (did you mean 'acuracy'?)" in message
    assert "expected at least arch, task, accuracy" in message
    with pytest.raises(ValueError, match="unknown status 'okay'.*'ok'"):
        build(row(status="okay"))
    with pytest.raises(ValueError, match="no runs"):
        leaderboard.build(pd.DataFrame())


# ----------------------------------------------------------------------------------------------------------------------
# Reading and writing


def record(arch: str, accuracy: float, seed: int = 0) -> Record:
    run = Run.of({"task": {"name": "mqar", "num_kv": 4}, "arch": {"name": arch, "stack": [arch]}, "seed": seed})
    return Record(
        run.id, "ok", run.to_dict(), {"accuracy": accuracy}, cost={"params": 131600, "flops": 1, "state_size": 2}
    )


def sweep(folder, *records: Record) -> Store:
    store = Store(folder)
    for one in records:
        store.write(one)
    return store


def test_a_folder_of_records_and_its_csv_give_the_same_board(tmp_path):
    store = sweep(tmp_path / "one", *(record(arch, score) for arch, score in [("hyena", 0.25), ("attention", 0.5)]))
    path = store.write_csv()
    by_records, by_csv = (leaderboard.build(leaderboard.read([source])) for source in (store.folder, path))
    pd.testing.assert_frame_equal(by_records, by_csv, check_dtype=False)
    assert by_csv["arch"].tolist() == ["attention", "hyena"]


def test_a_name_is_a_name_whatever_pandas_takes_it_for(tmp_path):
    (tmp_path / "table.csv").write_text(
        "arch,task,accuracy,lr,status\nNone,NA,0.5,1e-3,\nnull,NA,NaN,NA,failed\nNA,NA,nan,1e-3,diverged\n007,NA,1e-2,,ok\n"
    )
    table = leaderboard.read([tmp_path / "table.csv"])
    assert table["lr"].dtype == table["accuracy"].dtype == float
    board = leaderboard.build(table)
    assert board["arch"].tolist() == ["None", "007", "NA", "null"]
    assert board["NA"].tolist()[:3] == [0.5, 0.01, 0.0] and board["ok"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("column", ["arch", "task"])
def test_a_run_without_a_name_is_refused_with_its_row(tmp_path, capsys, column):
    table = pd.DataFrame([row(), row() | {column: None}, row()])
    table.to_csv(tmp_path / "table.csv", index=False)
    assert main([str(tmp_path / "table.csv")]) == 2
    assert f"table.csv has no {column} in row 2 of 3; expected arch and task of each run" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"the table has no {column} in row 2 of 3"):
        leaderboard.build(table)


def test_a_blank_status_is_ok():
    board = build(row("a"), row("b", status=None), row("c", status=""), row("d", status="failed"))
    assert board["ok"].tolist() == [1, 1, 1, 0] and board["mean"].tolist()[:3] == [0.5] * 3
    with pytest.raises(ValueError, match="lacks the column 'accuracy'"):  # that none is ok excuses no typo
        build({"arch": "a", "task": "t", "status": None})


def test_several_tables_are_ranked_together_and_a_run_counts_once(tmp_path):
    one = sweep(tmp_path / "one", record("hyena", 0.25))
    two = sweep(tmp_path / "two", record("hyena", 0.25), record("attention", 0.5))
    table = leaderboard.read([one.folder, two.folder])
    assert len(table) == 2
    board = leaderboard.build(table)
    assert board["arch"].tolist() == ["attention", "hyena"] and board["ok"].tolist() == [1, 1]


def test_runs_that_do_not_say_what_tells_models_apart_keep_the_bare_name():
    column = "versions.plugins"
    rows = [row("mine", accuracy=0.5) | {column: "mine@1a"}, row("mine", accuracy=None, status="failed")]
    board = leaderboard.build(pd.DataFrame(rows))
    assert board["arch"].tolist() == ["mine plugins=mine@1a", "mine"] and board["failed"].tolist() == [0, 1]


def test_on_a_narrow_terminal_no_number_is_folded():
    costs = {"params": 131600, "flops": 2.5e9, "state_size": 12}
    names = ("mqar_attention", "attention|hyena-swiglu*2")
    tasks = ("compression", "mqar", "selective_copying")
    rows = [row(name, task, 0.5, valid_accuracy=0.5, **costs) for name in names for task in tasks]
    board = leaderboard.build(pd.DataFrame(rows))
    for width, missing in ((80, "mean (valid-selected), ok"), (160, None)):
        out = io.StringIO()
        leaderboard.show(board, Console(file=out, width=width, force_terminal=True, color_system=None))
        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert text.count("0.500") >= (8 if missing else 12) and "mqar_attention" in text
        assert ("not shown" in text) == bool(missing) and (missing or "") in " ".join(text.split())


def test_the_terminal_table_shows_scores_spread_costs_and_what_is_missing():
    board = leaderboard.build(
        pd.DataFrame(
            [
                row("hyena", "in_context_recall", 0.5, params=131600, flops=2.5e9, state_size=12),
                row("hyena", "in_context_recall", 0.7, seed=1, params=131600, flops=2.5e9, state_size=12),
                row("mlp", "in_context_recall", None, status="failed"),
            ]
        )
    )
    out = io.StringIO()
    leaderboard.show(board, Console(file=out))
    text = out.getvalue()
    assert "in context recall" in text and "0.600 ± 0.141" in text
    assert all(part in text for part in ("131.6k", "2.5G", "12", "1/1", "0/1", "without a rank"))
    assert "valid-selected" not in text and "diverged" not in text


def test_markdown_and_csv(tmp_path):
    board = leaderboard.build(pd.DataFrame([row("attention|hyena", accuracy=1 / 3), row("b", accuracy=0.25)]))
    lines = leaderboard.markdown(board).splitlines()
    assert lines[0].startswith("| # | arch | mean | win rate | copy |") and lines[2].startswith(
        "| 1 | attention\\|hyena | 0.333 | 1.000 | 0.333 |"
    )
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}) == 1
    leaderboard.write_csv(board, tmp_path / "board.csv")
    assert pd.read_csv(tmp_path / "board.csv").loc[0, "copy"] == 1 / 3


def test_the_command(tmp_path, capsys):
    store = sweep(tmp_path / "one", record("hyena", 0.25), record("attention", 0.5))
    outputs = ["--csv", str(tmp_path / "b.csv"), "--md", str(tmp_path / "b.md")]
    assert main([str(store.folder), *outputs]) == 0
    assert "attention" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "b.csv")["arch"].tolist() == ["attention", "hyena"]
    assert (tmp_path / "b.md").read_text().startswith("| # | arch |")


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("arch,task,accuracy\n")
    (tmp_path / "good.csv").write_text("arch,task,accuracy,valid_loss\nx,t,1,2\n")
    for arguments, message in (
        ([tmp_path / "nowhere"], "does not exist"),
        ([tmp_path], "does not exist"),
        ([tmp_path / "empty.csv"], "not a CSV file of runs"),
        ([tmp_path / "header.csv"], "holds no runs"),
        ([tmp_path / "good.csv", "--score", "macro_accuracy"], "lacks the column 'macro_accuracy'"),
        ([tmp_path / "good.csv", "--score", "valid_loss"], "of 'valid_loss' less is better"),
        (
            [tmp_path / "good.csv", "--score", "arch"],
            "'arch' is configuration or a cost; expected a score, one of",
        ),
        ([tmp_path / "good.csv", "--publish", "wandb"], "good.csv: a tracker is shown records; expected a results f"),
        ([tmp_path / "nowhere", "--publish", "wandbb"], "did you mean 'wandb'"),
    ):
        assert main(list(map(str, arguments))) == 2
        said = capsys.readouterr()
        assert message in said.err and "Traceback" not in said.err and not said.out


def test_the_command_publishes(tmp_path, capsys, monkeypatch):
    store, told = sweep(tmp_path / "mine", record("a", 0.5)), []
    monkeypatch.setattr(
        "mad.trackers.publish_folder", lambda name, folder: told.append((name, folder)) or name != "none"
    )
    assert main([str(store.folder), "--publish", "wandb"]) == 0 and told == [("wandb", str(store.folder))]
    assert main([str(store.folder), "--publish", "none"]) == 1  # not all could be published
    monkeypatch.undo()
    assert main([str(store.folder), "--publish", "wandbb"]) == 2
    assert "unknown tracker 'wandbb' (did you mean 'wandb'?)" in capsys.readouterr().err


def test_amounts():
    assert [amount(n) for n in (12, 999, 131600, 2.5e9, 3e12, math.nan)] == ["12", "999", "131.6k", "2.5G", "3.0T", ""]


def test_equal_means_are_ties_in_whatever_order_they_are_summed():
    seeds = {"a": (0.1, 0.2, 0.3), "b": (0.3, 0.1, 0.2), "c": (0.3, 0.2, 0.1)}
    board = build(*(row(arch=arch, accuracy=x, seed=i) for arch, of in seeds.items() for i, x in enumerate(of)))
    assert board["win_rate"].tolist() == [0.5] * 3 and board.index.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"accuracy": math.inf}, "the accuracy of a at copy is infinite"),
        ({"task": "mean"}, "a task cannot be called 'mean' here: a leaderboard has a column of that name"),
        ({"task": "other_std"}, "a task cannot be called 'other_std' here"),
    ],
)
def test_what_a_board_cannot_hold(change, message):
    with pytest.raises(ValueError, match=message):
        build(row(**change), row(task="other"))


def test_a_results_csv_of_an_older_mad_is_of_the_same_models(tmp_path):
    """And its numbers, which a column with gaps makes floats, are written as they were."""
    store = Store(tmp_path / "new", sweep="new")
    for seed, dim in ((0, 64), (1, 7)):
        config = Run.of({"task": "mqar", "arch": {"name": "a", "stack": ["mlp"], "dim": dim}, "seed": seed}).to_dict()
        store.write(Record(f"{seed:016x}", "ok", config, {"accuracy": 0.5}))
    older = leaderboard.read([store.folder]).drop(
        columns=["arch.init", "arch.own_filters", "arch.head_bias", "train.report"]
    )
    older.assign(run_id=["a" * 16, "b" * 16], seed=2, accuracy=0.7).to_csv(tmp_path / "older.csv", index=False)
    pd.DataFrame([row(arch="b", accuracy=0.1)]).to_csv(tmp_path / "foreign.csv", index=False)
    board = leaderboard.build(leaderboard.read([store.folder, tmp_path / "older.csv", tmp_path / "foreign.csv"]))
    assert sorted(board["arch"]) == ["a dim=64", "a dim=7", "b"]
    assert board.set_index("arch").loc["a dim=7", "mqar"] == pytest.approx(0.6)


def test_a_name_with_a_line_break_is_a_row_of_markdown():
    board = leaderboard.build(pd.DataFrame([row(arch="a\nb|c", task="x|y")]))
    assert "| a b\\|c |" in leaderboard.markdown(board) and "| x\\|y |" in leaderboard.markdown(board)


def test_a_name_in_the_caption_is_no_markup(tmp_path, capsys):
    pd.DataFrame([row()]).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "published.csv").write_text("arch,copy,old [/x]\na,0.5,0.1\n")
    assert main([str(tmp_path / "runs.csv"), "--anchors", str(tmp_path / "published.csv")]) == 0
    assert "old [/x]" in capsys.readouterr().out


def test_a_result_counts_before_a_failure_of_the_same_run(tmp_path):
    config = Run.of({"task": "copy", "arch": {"name": "a", "stack": ["hyena"]}}).to_dict()
    for folder, status in (("first", "failed"), ("second", "ok")):
        Store(tmp_path / folder, "mine").write(Record("0" * 16, status, config, {"accuracy": 0.5}))
    table, records = leaderboard.load([tmp_path / "first", tmp_path / "second"])
    assert table["status"].tolist() == ["ok"] and [record.status for record in records] == ["ok"]


def test_numbers_of_another_programs_runs_begin_anew_in_every_table(tmp_path):
    for name, archs in (("one", "ab"), ("two", "cd")):
        rows = [row(arch=arch, run_id=number) for number, arch in enumerate(archs)]
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    assert leaderboard.read([tmp_path / "one.csv", tmp_path / "two.csv"])["arch"].tolist() == ["a", "b", "c", "d"]


def test_a_table_is_not_replaced_by_its_own_board(tmp_path, capsys):
    file = tmp_path / "runs.csv"
    pd.DataFrame([row()]).to_csv(file, index=False)
    before = file.read_text()
    assert main([str(file), "--csv", str(file)]) == 2 and file.read_text() == before
    assert f"--csv {file} would replace the table {file}" in capsys.readouterr().err
    published, link = tmp_path / "published.csv", tmp_path / "link.csv"
    published.write_text("arch,copy\na,0.5\n")
    link.hardlink_to(file)
    for other in (published, link):
        assert main([str(file), "--anchors", str(published), "--csv", str(other)]) == 2
    assert published.read_text() == "arch,copy\na,0.5\n" and file.read_text() == before


def test_seeds_may_be_words_or_missing(tmp_path):
    rows = [
        row(arch=arch, accuracy=0.5, seed=seed) for arch, seed in (("a", "s1"), ("a", "s2"), ("b", "s2"), ("b", None))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    assert main([str(tmp_path / "runs.csv"), "--html", str(tmp_path / "board.html")]) == 0
