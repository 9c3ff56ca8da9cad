"""A run that was interrupted goes on to the very record that it would have had."""

import pytest
import torch

from mad import engine, training
from mad.records import Record, Store
from mad.training import Checkpoints, host
from mad.training.checkpoint import Checkpoint
from mad.training.trainer import Update


@pytest.fixture
def run(tmp_path):
    (tmp_path / "corpus.txt").write_text(" ".join(f"{i * i % 97} {i % 13}" for i in range(4000)))
    return training.prepare(
        {
            "task": {"name": "text", "path": str(tmp_path / "corpus.txt"), "seq_len": 16},
            "arch": {"stack": "base_conv-mlp", "dim": 16, "embed_dropout": 0.2},  # dropout draws random numbers
            "train": {"steps": 24, "batch_size": 8, "num_train": 50, "num_test": 8, "eval_every": 5},
            "optim": {"lr": 1e-2},
            "device": "cpu",
        }
    )


def outcome(record):
    return {key: value for key, value in record.to_dict().items() if key not in ("seconds", "started")}


def interrupt_at(step):
    def on_progress(progress):
        if progress["step"] == step:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize("report", ["last", "lowest_perplexity"])
def test_it_goes_on_to_the_same_curve(run, tmp_path, monkeypatch, report):
    run.train.report = report
    if report != "last":  # the lowest comes before the interruption, whose model has to be there at the end
        run.optim.lr, run.optim.schedule = 3e-2, "constant"
        run.task = {"name": "mqar", "vocab_size": 32, "seq_len": 16, "num_kv": 2}
        run = training.prepare(run)
    want = training.train(run)
    if report != "last":
        lowest = min(want.curve, key=lambda point: point["batch_perplexity"])
        assert lowest["step"] <= 10 and want.metrics["loss"] == lowest["loss"] and "valid_loss" in want.metrics
    where = Checkpoints(tmp_path / "checkpoints", minutes=0)
    for step in (5, 15):
        with pytest.raises(KeyboardInterrupt):
            training.train(run, interrupt_at(step), where)
        saved = torch.load(where.folder / f"{run.id}.pt", weights_only=True)
        assert saved["step"] == step - 5 and len(list(where.folder.iterdir())) == 1
    trained, real = [], Update.__call__
    monkeypatch.setattr(Update, "__call__", lambda self, *given: (trained.append(1), real(self, *given)))
    record = training.train(run, checkpoints=where)
    assert outcome(record) == outcome(want) and record.seconds > 0
    assert len(trained) == 24 - 10  # not from the beginning
    assert len(list(where.folder.iterdir())) == 1  # until the record is stored


def test_short_runs_write_none(run, tmp_path):
    training.train(run, checkpoints=Checkpoints(tmp_path / "checkpoints"))
    assert not (tmp_path / "checkpoints").exists()


def test_one_that_cannot_be_read_is_begun_afresh(run, tmp_path):
    where = Checkpoints(tmp_path / "checkpoints", minutes=60)
    where.folder.mkdir()
    (where.folder / f"{run.id}.pt").write_bytes(b"PK cut off")
    assert outcome(training.train(run, checkpoints=where)) == outcome(training.train(run))
    assert not list(where.folder.iterdir())


@pytest.mark.parametrize("trouble", [torch.OutOfMemoryError("CUDA out of memory"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("where", ["torch.load", "mad.training.trainer.Trainer.load"])
def test_trouble_of_the_machine_costs_no_checkpoint(run, tmp_path, monkeypatch, trouble, where):
    checkpoints = Checkpoints(tmp_path / "checkpoints", minutes=0)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, interrupt_at(5), checkpoints)

    def fail(*given, **options):
        raise trouble

    with monkeypatch.context() as changed, pytest.raises(type(trouble)):
        changed.setattr(where, fail)
        training.train(run, checkpoints=checkpoints)
    assert len(list(checkpoints.folder.iterdir())) == 1
    assert outcome(training.train(run, checkpoints=checkpoints)) == outcome(training.train(run))


@pytest.mark.parametrize("change", ["commit", "weights", "key"])
def test_one_of_other_code_is_not_gone_on_from(run, tmp_path, monkeypatch, change):
    where = Checkpoints(tmp_path / "checkpoints", minutes=0)
    with monkeypatch.context() as other, pytest.raises(KeyboardInterrupt):
        if change == "commit":
            other.setattr(host, "git_commit", lambda: "another")
        training.train(run, interrupt_at(5), where)
    (path,) = where.folder.iterdir()
    if change != "commit":  # the same commit, with files that differ
        state = torch.load(path, weights_only=True)
        if change == "weights":
            state["model"].popitem()
        else:
            del state["seen"]
        torch.save(state, path)
    where = Checkpoints(where.folder, minutes=60)
    assert outcome(training.train(run, checkpoints=where)) == outcome(training.train(run))
    assert not list(where.folder.iterdir())


def test_what_a_killed_process_left_half_written_is_cleared(run, tmp_path):
    (tmp_path / f"{run.id}.pt.0123.tmp").write_bytes(b"half")
    Checkpoint(Checkpoints(tmp_path, minutes=0), run.id).save("cpu", {"step": 1})
    assert [file.name for file in tmp_path.glob("*.pt*")] == [f"{run.id}.pt"]


def test_a_stored_record_ends_its_checkpoint(run, tmp_path):
    path = tmp_path / "checkpoints" / f"{run.id}.pt"
    path.parent.mkdir()
    path.write_bytes(b"anything")
    engine.execute([run], Store(tmp_path), engine.build("inline", lambda run, **_: Record(run.id, "failed", {})))
    assert path.exists()  # to go on from, at the next attempt
    engine.execute([run], Store(tmp_path), engine.build("inline", lambda run, **_: Record(run.id, "ok", {})))
    assert not path.exists()


def test_a_full_disk_costs_the_checkpoint_alone(run, tmp_path):
    (tmp_path / "file").touch()
    checkpoint = Checkpoint(Checkpoints(tmp_path / "file", minutes=0), run.id)
    checkpoint.save("cpu", {"step": 1})  # a folder cannot be made there
    assert checkpoint.load("cpu") is None
