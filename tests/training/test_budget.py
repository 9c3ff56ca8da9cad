"""How long runs train by tokens and FLOPs, what is refused, and what their records say of it."""

import math

import numpy as np
import pytest

from mad import training

STEP = 8 * 16  # tokens


@pytest.fixture
def text(tmp_path):
    """A run of text, some keys of its train section changed."""
    words = "the quick brown fox jumps over the lazy dog".split()
    text = " ".join(f"{words[i * i % 9]} {i}" for i in range(1500))
    (tmp_path / "corpus.txt").write_text(text)

    def run(**train):
        return {
            "task": {"name": "text", "path": str(tmp_path / "corpus.txt"), "seq_len": 16},
            "arch": {"stack": "base_conv-attention", "dim": 16},
            "train": {"batch_size": 8, "num_test": 4} | train,
            "device": "cpu",
        }

    return run


def test_tokens_become_steps_and_only_their_windows_are_loaded(text):
    run = training.prepare(text(tokens=10 * STEP + 3))
    assert (run.train.steps, run.train.num_train, run.train.stop_at) == (None, 80, None)
    assert training.prepare(run) == run and training.prepare(run).id == run.id
    record = training.train(run)
    assert record.steps == 10 and record.run_id == run.id and len(record.curve) == 1
    cost = record.cost
    assert cost["tokens"] == cost["unique_tokens"] == 10 * STEP and cost["seq_len"] == 16
    assert cost["flops_exact"] == 3 * 80 * cost["flops"]
    assert cost["flops_6nd"] == 6 * cost["params_nonembedding"] * 10 * STEP
    assert training.prepare(text(tokens=1)).train.num_train == 8  # one step at least


def test_more_tokens_than_the_corpus_has(text):
    windows = training.prepare(text()).train.num_train
    record = training.train(text(tokens=2 * windows * 16))
    assert record.config["train"]["num_train"] == windows and record.cost["unique_tokens"] == windows * 16
    assert record.cost["tokens"] > 1.9 * record.cost["unique_tokens"]


def test_a_budget_is_met_within_five_per_cent(text):
    step = 3 * 8 * training.train(text(steps=1)).cost["flops"]
    record = training.train(text(budget_flops=12.3 * step))
    assert record.steps == 12 and record.cost["flops_exact"] == 12 * step
    with pytest.raises(
        ValueError, match="is 3.40 steps of train.batch_size=8, and 3 .*5%; train.batch_size=4 or smaller would do"
    ):
        training.prepare(text(budget_flops=3.4 * step))
    with pytest.raises(ValueError, match="is 0.50 steps .*train.batch_size=2 or smaller would do"):
        training.prepare(text(budget_flops=0.5 * step))
    with pytest.raises(ValueError, match="no batch size would do: one sequence costs"):
        training.prepare(text(budget_flops=0.01 * step))


def test_tokens_may_be_written_with_an_exponent(text):
    ids = {training.prepare(text(tokens=tokens)).id for tokens in (1000, 1e3, "1e3")}
    assert len(ids) == 1 and type(training.prepare(text(tokens=1e3)).train.tokens) is int


def test_what_is_said_of_text(text):
    record = training.train(text(steps=4, eval_every=2))
    metrics = record.metrics
    assert [point["step"] for point in record.curve] == [2, 4]
    for prefix in ("", "valid_"):
        assert metrics[f"{prefix}bits_per_byte"] == pytest.approx(metrics[f"{prefix}loss"] / math.log(2))
        assert metrics[f"{prefix}perplexity"] == pytest.approx(math.exp(metrics[f"{prefix}loss"]))
    assert metrics["loss"] != metrics["valid_loss"]


def test_more_sequences_than_there_are_is_said_before_work_starts(text):
    for key in ("num_train", "num_test"):
        with pytest.raises(ValueError, match=f"train.{key}=99999, but split '.*' of task 'text' has .* of 16"):
            training.prepare(text(steps=1, **{key: 99_999}))


def test_a_text_that_is_easy_is_trained_to_the_end(text, tmp_path):
    (tmp_path / "corpus.txt").write_text("a" * 4000)
    record = training.train(text(steps=30, eval_every=10) | {"optim": {"lr": 0.1}})
    assert record.steps == 30 and record.curve[0]["accuracy"] == 1.0


@pytest.mark.parametrize(
    "train, message",
    [
        ({"steps": 3, "tokens": 100}, "train.steps=3 and train.tokens=100 are given"),
        ({"tokens": 100, "budget_flops": 1e9}, "train.tokens=100 and train.budget_flops=1000000000.0"),
        ({"tokens": 0}, "train.tokens must be at least 1"),
        ({"tokens": 1e3 + 0.5}, "train.tokens must be a whole number, got 1000.5"),
        ({"tokens": float("inf")}, "train.tokens must be a whole number, got inf"),
        ({"budget_flops": 0}, "train.budget_flops must be above 0"),
        ({"budget_flops": math.inf}, "train.budget_flops must be above 0 and finite"),
    ],
)
def test_bad_lengths(text, train, message):
    with pytest.raises(ValueError, match=message):
        training.prepare(text(**train))


def test_a_budget_is_of_the_sequences_trained_on_however_long_the_tests_are(text, tmp_path):
    task = {"name": "mqar", "vocab_size": 64, "seq_len": 16, "num_kv": 2}
    longer = task | {"test_segments": [[48, 4, 4]]}
    for given in ({"tokens": 10 * STEP}, {"budget_flops": 3e8}):
        run = text(num_train=32, **given) | {"arch": {"stack": "base_conv-attention", "dim": 16, "max_length": 48}}
        plain, record = (training.train(run | {"task": each}) for each in (task, longer))
        assert record.steps == plain.steps and record.cost["seq_len"] == 48
        for name in ("tokens", "unique_tokens", "flops_exact", "flops_6nd"):
            assert record.cost[name] == plain.cost[name]
    for split, (num, length) in {"train": (32, 16), "test": (4, 48)}.items():
        (tmp_path / split).mkdir()
        for name in ("inputs", "targets"):
            np.save(tmp_path / split / f"{name}.npy", np.zeros((num, length), dtype=int))
    record = training.train(text(tokens=10 * STEP) | {"task": {"name": "folder", "path": str(tmp_path)}})
    assert record.steps == 10 and record.cost["tokens"] == 10 * STEP


def test_synthetic_runs_keep_their_data_and_their_ids(text):
    task = {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2}
    run = training.prepare(text(tokens=STEP) | {"task": task})
    assert run.train.num_train == 100_000 and run.train.stop_at is None
    plain = training.prepare(text(steps=3) | {"task": task})
    assert plain.train.stop_at == 0.999 and plain.id == "1f9a7807faa30d33"  # as before there were tokens and budgets
    for section, keys in (
        ("train", {"report": "lowest_perplexity"}), ("arch", {"init": "normal"}), ("arch", {"head_bias": True})
    ):  # fmt: skip
        given = text(steps=3) | {"task": task}
        assert training.prepare(given | {section: given[section] | keys}).id != plain.id
    mixed = task | {"segments": [[8, 2, 24], [16, 4, 8]]}
    with pytest.raises(ValueError, match="train.tokens needs sequences of one length, task 'mqar' mixes 8, 16 tokens"):
        training.prepare(text(tokens=STEP) | {"task": mixed})
