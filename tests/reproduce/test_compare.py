"""Which run is behind which published score, when a row is whole, and what is said of one that is not."""

import json

import numpy as np
import pandas as pd
import pytest

from mad import leaderboard, tasks
from mad.records import Store
from mad.reproduce import PUBLISHED, compare, read
from mad.reproduce.compare import VERDICTS, ranks
from mad.reproduce.published import MAD_SETTINGS
from mad.reproduce.stacks import BASED, ZOOLOGY, model_of


def at(comparison, **keys):
    rows = comparison.rows
    for key, value in keys.items():
        rows = rows[rows[key] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def verdicts(comparison):
    counts = comparison.rows["verdict"].value_counts().to_dict()
    assert set(counts) <= set(VERDICTS)
    return counts


def test_the_settings_are_those_of_the_protocol():
    of_training = {"num_train": "train.num_train"}
    want = {
        (task, tuple(sorted((of_training.get(key, f"task.{key}"), value) for key, value in options.items())))
        for task, options in tasks.settings("mad")
    }
    found = set()
    for task, options in MAD_SETTINGS.items():
        baseline = {column: values[0] for column, values in options.items()}
        for column, values in options.items():
            found |= {(task, tuple(sorted((baseline | {column: value}).items()))) for value in values}
    assert found == want and len(want) == 66


def test_a_whole_table_is_reproduced_and_the_mean_with_it(mad_table):
    found = compare("mad_table", mad_table)
    assert verdicts(found) == {"reproduced": 35} and not found.departed and not found.left_out
    assert np.allclose(found.rows["difference"], 0, atol=1e-9) and np.allclose(
        found.rows["plain"] - found.rows["ours"], 0.01
    )
    mean = at(found, model="striped_hyena_moe", task="mean")
    assert (mean["settings"], mean["points"], mean["points_expected"], mean["runs"]) == (66, 396, 396, 396)
    theirs = read("mad_table").set_index("architecture")
    assert mean["published"] == pytest.approx(theirs.loc["striped_hyena_moe", "mad_mean"], abs=1e-3)
    board = leaderboard.build(mad_table).set_index("arch")
    for row in found.rows.to_dict("records"):
        assert row["ours"] == pytest.approx(board.loc[row["model"], row["task"]])
    ours, published = ranks(found.rows, "ours"), ranks(found.rows, "published")
    assert ours and published and ours.spearman == published.spearman == pytest.approx(-1)


def test_a_missing_run_a_missing_setting_and_another_recipe_make_a_row_partial(mad_table):
    hyena = mad_table["arch"] == "hyena_swiglu"
    one = hyena & (mad_table["task"] == "compression")
    found = compare("mad_table", mad_table.drop(mad_table.index[one][0]))
    row = at(found, model="hyena_swiglu", task="compression")
    assert (row["verdict"], row["settings"], row["points"], row["points_expected"]) == ("partial", 11, 65, 66)
    assert verdicts(found) == {"reproduced": 33, "partial": 2}  # with the mean

    found = compare("mad_table", mad_table[~(one & (mad_table["task.seq_len"] == 256))])
    assert at(found, model="hyena_swiglu", task="compression")["settings"] == 10

    found = compare("mad_table", mad_table.assign(**{"train.epochs": mad_table["train.epochs"].mask(one, 50)}))
    assert verdicts(found) == {"reproduced": 33, "partial": 2}
    assert found.departed == {"train.epochs": ([50], 200)}

    found = compare("mad_table", mad_table[~one])  # no compression: no mean either
    assert at(found, model="hyena_swiglu", task="compression")["verdict"] == "no run"
    assert at(found, model="hyena_swiglu", task="mean")["verdict"] == "no run"
    assert at(found, model="hyena_swiglu", task="mean")["points"] == 396 - 66


def test_a_run_in_no_place_of_the_grid_is_no_point_of_it(mad_table):
    keys = {"model": "hyena_swiglu", "task": "memorization"}
    other = mad_table["lr"].mask(mad_table["lr"] == 1e-4, 2e-4)
    row = at(compare("mad_table", mad_table.assign(lr=other)), **keys)
    assert (row["verdict"], row["points"], row["runs"]) == ("partial", 24, 24)
    better = mad_table[mad_table["lr"] == 1e-3].assign(lr=3e-4, batch_macro_accuracy=1.0)
    row = at(compare("mad_table", pd.concat([mad_table, better], ignore_index=True)), **keys)
    assert (row["verdict"], row["points"], row["runs"]) == ("reproduced", 36, 36)
    assert row["ours"] == pytest.approx(0.895)
    row = at(compare("mad_table", better.reset_index(drop=True)), **keys)  # these alone are shown
    assert (row["verdict"], row["ours"], row["points"], row["runs"]) == ("partial", 1.0, 0, 12)


def test_every_seed_needs_the_whole_grid(mad_table):
    mine = mad_table[(mad_table["task"] == "memorization") & (mad_table["arch"] == "hyena_swiglu")]
    some = mine["lr"] == 1e-3
    row = at(
        compare("mad_table", mine.assign(seed=some.astype(int)).reset_index(drop=True)),
        model="hyena_swiglu",
        task="memorization",
    )
    assert (row["verdict"], row["points"], row["runs"]) == ("partial", 12, 36)


@pytest.mark.parametrize("column, value", [("optim.clip", 1.0), ("arch.norm", "layer"), ("arch.embed_dropout", 0.1)])
def test_another_recipe_reproduces_nothing(mad_table, column, value):
    found = compare("mad_table", mad_table.assign(**{column: value}))
    assert verdicts(found) == {"partial": 35} and list(found.departed) == [column]


def test_other_data_reproduce_nothing(table_of):
    mine = table_of("reproduce_based_figure2", "arch=mqar_based", "task.segments=[[1024,256,180000]]")
    found = compare("based_figure2", mine)
    assert verdicts(found).keys() == {"partial", "no run"} and list(found.departed) == ["task.segments"]


def test_other_settings_are_left_out(mad_table):
    mine = mad_table[mad_table["task"] == "selective_copying"]
    short = mine.assign(**{"task.seq_len": 32})
    both = mine.assign(**{"task.vocab_size": 32, "task.tokens_to_copy": 32})  # two changes at once
    found = compare("mad_table", pd.concat([mine, short, both, mine.assign(task="mqar")], ignore_index=True))
    assert found.left_out == 3 * len(mine)
    row = at(found, model="hyena_swiglu", task="selective_copying")
    assert (row["verdict"], row["settings"]) == ("reproduced", 13)


def test_off_diverged_failed_and_seeds(mad_table):
    mine = mad_table[(mad_table["task"] == "memorization") & (mad_table["arch"] == "hyena_swiglu")]
    keys = {"model": "hyena_swiglu", "task": "memorization"}
    off = at(compare("mad_table", mine.assign(batch_macro_accuracy=0.8)), **keys)
    assert off["verdict"] == "off" and off["difference"] == pytest.approx(-0.095)
    diverged = at(compare("mad_table", mine.assign(status="diverged")), **keys)
    assert (diverged["ours"], diverged["plain"], diverged["points"], diverged["verdict"]) == (0, 0, 36, "off")
    falls = mine.assign(last_batch_macro_accuracy=mine["batch_macro_accuracy"] - 0.2)
    fallen = at(compare("mad_table", falls), **keys)
    assert fallen["ours"] == pytest.approx(0.895) and fallen["at_end"] == pytest.approx(0.695)
    assert at(compare("mad_table", falls.assign(status="diverged")), **keys)["at_end"] == 0
    first = mine.index == mine.index[0]
    found = compare("mad_table", mine.assign(status=np.where(first, "failed", "ok")))
    assert found.failed == 1 and at(found, **keys)["points"] == 35
    gone = compare("mad_table", mine.assign(status="failed"))
    assert gone.failed == 36 and at(gone, **keys)["verdict"] == "no run"
    again = mine.assign(seed=1, batch_macro_accuracy=mine["batch_macro_accuracy"] - 0.02)
    seeds = at(compare("mad_table", pd.concat([mine, again])), **keys)
    assert seeds["difference"] == pytest.approx(-0.01) and (seeds["points"], seeds["runs"]) == (36, 72)


def test_an_architecture_that_was_not_published_is_a_row_of_its_own(mad_table):
    mine = mad_table[mad_table["arch"] == "hyena_swiglu"]
    other = mine.assign(arch="mine", stack="rtf-swiglu-rtf-swiglu")
    named = mine.assign(arch="hyena")  # found by its layers
    found = compare("mad_table", pd.concat([named, other], ignore_index=True))
    called_so = compare("mad_table", mine.assign(stack="attention-mlp-attention-mlp"))
    assert verdicts(called_so) == {"no run": 35, "not published": 7}
    layer = '{"name": "hyena", "filter_order": 8}, "swiglu"'
    narrow = compare("mad_table", mine.assign(stack=f"[{layer}, {layer}]"))
    assert verdicts(narrow) == {"no run": 35, "not published": 7}
    assert verdicts(found) == {"reproduced": 7, "not published": 7, "no run": 28}
    assert at(found, model="mine", task="mean")["ours"] == pytest.approx(0.6607, abs=1e-3)


@pytest.mark.parametrize("name, whole", [("based_figure2", 43), ("zoology_figure2", 80)])
def test_every_run_of_a_sweep_has_its_row(table_of, name, whole):
    found = compare(name, table_of(f"reproduce_{name}", costs=name == "based_figure2"))
    counts = verdicts(found)
    assert not found.departed and not found.left_out
    assert sum(counts.values()) == whole and set(counts) <= {"reproduced", "off"}
    if name == "based_figure2":
        off = found.rows.set_index("model").eval("ours_bytes / state_bytes - 1").dropna()
        inner = off.index.str.contains("delta|mamba")
        assert len(off) == whole
        assert off[~inner].abs().max() < 0.06  # theirs count a convolution's and a window's inputs
        assert off[inner].between(0.03, 0.45).all()  # but not those of convolutions within DeltaNet and Mamba


def test_of_two_models_in_a_row_one_counts_with_its_own_state(table_of):
    """Mamba-2 with 64 channels and 16 states, and with 128 and 8: a published point that does not say which."""
    mine = table_of("reproduce_based_figure2", "arch=mqar_mamba2", costs=True)
    narrow = (mine["arch.dim"] == 64) & mine["stack"].str.contains("16")
    wide = (mine["arch.dim"] == 128) & mine["stack"].str.contains(": 8")
    pair = mine[narrow | wide].assign(accuracy=lambda t: t["accuracy"].mask(wide, 0.7))
    sizes = (4 * mine["state_size"][wide]).unique(), (4 * mine["state_size"][narrow]).unique()
    row = at(compare("based_figure2", pair), model="mamba2", knob="dN=1024")
    assert (row["ours"], row["ours_bytes"], row["points"], row["runs"]) == (0.7, *sizes[0], 4, 4)
    assert sizes[0] != sizes[1] and "width" not in row
    partly = pair.drop(pair.index[wide[pair.index]][:1])  # the better one lacks a rate: the whole one counts
    row = at(compare("based_figure2", partly), model="mamba2", knob="dN=1024")
    assert (row["ours"], row["ours_bytes"], row["points"], row["runs"]) == (0.5, *sizes[1], 4, 4)


def test_sparse_experts_are_not_the_published_ones(table_of):
    archs = "arch=striped_hyena_moe,striped_hyena_sparse_moe"
    found = compare("mad_table", table_of("reproduce_mad_table", archs, "task=memorization"))
    assert at(found, model="striped_hyena_moe", task="memorization")["verdict"] != "no run"
    assert at(found, model="striped_hyena_sparse_moe", task="memorization")["verdict"] == "not published"


@pytest.mark.parametrize("name, ours", [("mad_table", 35), ("based_figure2", 8), ("zoology_figure2", 12)])
def test_the_reduced_sweeps_are_part_of_the_whole_ones(table_of, name, ours):
    found = compare(name, table_of(f"reproduce_{name}_reduced", *(["train.precision=bf16"] * (name == "mad_table"))))
    counts = verdicts(found)
    assert counts["partial"] == ours and not counts.keys() & {"reproduced", "off", "not published"}
    rarely = ["train.eval_every"] if name == "mad_table" else []
    assert list(found.departed) == [*rarely, "train.epochs"] and not found.left_out
    if name == "mad_table":
        assert at(found, model="hyena_swiglu", task="memorization")["settings"] == 6
        assert at(found, model="hyena_swiglu", task="mean")["settings"] == 11


def test_the_best_rate_counts_and_a_csv_says_what_the_records_say(runs_of, tmp_path):
    records = runs_of("reproduce_based_figure2", "arch=mqar_based", costs=True)
    for record in records:
        record.metrics["accuracy"] = 0.9 if record.config["optim"]["lr"] == 1e-2 else 0.2
    records[0].config["arch"]["norm"] = "rms"
    store = Store(tmp_path)
    for record in records:
        store.write(record)
    store.write_csv()
    from_records = compare("based_figure2", leaderboard.read([tmp_path]))
    from_csv = compare("based_figure2", leaderboard.read([tmp_path / "results.csv"]))
    pd.testing.assert_frame_equal(from_records.rows, from_csv.rows)
    assert from_records.departed == from_csv.departed == {"arch.norm": (["rms"], "layer")}
    row = at(from_csv, model="based", d_model=128, knob="f=32")
    assert row["ours"] == 0.9 and row["ours_bytes"] == 290_500


def test_a_batch_follows_the_length(table_of):
    mine = table_of("reproduce_zoology_figure2", "arch=zoology_hyena", "arch.dim=64")
    found = compare("zoology_figure2", mine.assign(**{"train.batch_size": 512}))
    assert found.departed == {"train.batch_size": ([512], {64: 512, 128: 512, 256: 256, 512: 128})}
    for length in (64, 128, 256, 512):
        assert (at(found, model="hyena", d_model=64, seq_len=length)["verdict"] == "partial") == (length > 128)


def test_models_are_told_by_their_stacks():
    attention = {"name": "attention", "rope": False}
    assert model_of(json.dumps(["base_conv", attention]), BASED, 64) == ("attention", "")
    assert model_of(json.dumps([attention, attention]), BASED, 64) is None
    assert model_of(json.dumps([attention, attention]), ZOOLOGY, 64) is None  # no identity in place of the MLP
    assert model_of(json.dumps([attention, "identity"] * 2), ZOOLOGY, 64) == ("attention", "")
    assert model_of("base_conv-based", BASED, 64) == ("based", "f=16")  # the default
    assert model_of(json.dumps(["base_conv", {"name": "based", "num_heads": 2}]), BASED, 64) is None
    window = {"name": "sliding_attention", "rope": False, "window": 65}
    assert model_of(json.dumps(["base_conv", window]), BASED, 64) == ("sliding_window", "w=64")
    assert model_of(json.dumps([{"parallel": ["attention", "based"]}]), BASED, 64) is None
    assert model_of("hyena-hyena", BASED, 64) is None  # the MAD protocol's is wider
    mamba = [{"name": "mamba", "num_states": 24}, {"name": "mamba", "num_states": 24}]
    assert model_of(json.dumps(mamba), BASED, 128) == ("mamba", "dN=3072")
    assert model_of(json.dumps([mamba[0], "mamba"]), BASED, 128) is None  # of one size each
    assert model_of("mamba2-mamba2", BASED, 64) == ("mamba2", "dN=8192")
    assert model_of(json.dumps(["base_conv", window | {"window": None}]), BASED, 64) is None
    import layers

    for stack, knob in BASED.values():
        if knob:
            assert layers.options(stack[-1]["name"])[knob.option] == knob.default


def test_published_files():
    for name in PUBLISHED:
        scores = read(name)
        assert len(scores) in (5, 43, 80) and scores.select_dtypes("number").notna().any().all()


def test_what_cannot_be_compared_is_said(mad_table):
    with pytest.raises(ValueError, match="unknown reproduction 'mad_tabel' .did you mean 'mad_table'"):
        compare("mad_tabel", mad_table)
    with pytest.raises(
        ValueError, match="none of the 1980 runs is of based_figure2 .*got the tasks compression, fuzzy"
    ):
        compare("based_figure2", mad_table)
    with pytest.raises(ValueError, match="lacks 'stack' .did you mean 'stacks'"):
        compare("mad_table", mad_table.rename(columns={"stack": "stacks"}))
    with pytest.raises(ValueError, match="batch_macro_accuracy"):
        compare("mad_table", mad_table.drop(columns="batch_macro_accuracy"))
