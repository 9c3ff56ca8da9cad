"""The task text: windows of a corpus, cut so that nothing held out is trained on, and what is said of a bad corpus."""

import math
import os

import numpy as np
import pytest
import torch

from mad import tasks


@pytest.fixture
def corpus(tmp_path):
    """A token file in which an id is its own place in the stream."""
    np.save(tmp_path / "ids.npy", np.arange(1000))
    return tmp_path / "ids.npy"


def build(path, **options):
    return tasks.build("text", **({"path": str(path), "seq_len": 10} | options))


def test_windows_are_consecutive_disjoint_and_held_out(corpus):
    task = build(corpus)
    assert (task.vocab_size, task.input_length, task.head, task.num_train, task.num_test) == (1000, 10, "lm", 89, 4)
    places = {}
    for split, num in (("train", 89), ("valid", 4), ("test", 4)):
        inputs, targets = task.sample(num, split=split)
        assert torch.equal(targets, inputs + 1) and torch.equal(inputs[:, 1:], targets[:, :-1])
        assert inputs.unique().numel() == inputs.numel()
        places[split] = set(inputs.flatten().tolist()) | set(targets.flatten().tolist())
    assert max(places["train"]) < min(places["valid"]) and max(places["valid"]) < min(places["test"])
    assert min(places["valid"]) == 900 and min(places["test"]) == 950


def test_the_seed_orders_training_and_nothing_else(corpus):
    task = build(corpus)
    few, all_of_it = task.sample(20, seed=3), task.sample(89, seed=3)
    assert torch.equal(few.inputs, all_of_it.inputs[:20])
    assert not torch.equal(few.inputs, task.sample(20, seed=4).inputs)
    assert torch.equal(task.sample(3, 3, "test").inputs, task.sample(3, 4, "test").inputs)
    assert task.sample(2, split="test").inputs[:, 0].tolist() == [950, 970]  # evenly spaced


def test_files_folders_and_globs_are_one_stream(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "second " * 40), ("a.txt", "first " * 40), ("sub/c.md", "third " * 40)):
        (tmp_path / name).write_text(text)
    whole = tmp_path.parent / f"{tmp_path.name}.txt"
    whole.write_text("first " * 40 + "second " * 40 + "third " * 40)
    assert build(tmp_path).digest == build(whole).digest == build(f"{tmp_path}/**/*.*").digest
    assert build(f"{tmp_path}/*.txt").digest not in (build(tmp_path).digest, build(tmp_path / "a.txt").digest)
    assert build(tmp_path).vocab_size == 256
    monkeypatch.chdir(tmp_path)
    assert build("a.txt").digest == build(tmp_path / "a.txt").digest


def test_token_files_of_either_kind(tmp_path, corpus):
    np.arange(1000, dtype="<u2").tofile(tmp_path / "ids.bin")
    one, other = build(tmp_path / "ids.bin"), build(corpus)
    assert one.digest == other.digest and one.vocab_size == 1000
    assert torch.equal(one.sample(5).targets, other.sample(5).targets)
    assert build(corpus, vocab_size=1024).vocab_size == 1024


def test_metrics_of_bytes_and_of_tokens(tmp_path, corpus):
    (tmp_path / "a.txt").write_text("some text " * 50)
    assert build(tmp_path / "a.txt").of_loss(math.log(4)) == {"perplexity": pytest.approx(4), "bits_per_byte": 2.0}
    assert set(build(corpus).of_loss(1.0)) == {"perplexity"} and build(corpus).of_loss(1e9)["perplexity"] == math.inf


def test_the_standard_library_is_the_default(tmp_path, monkeypatch):
    task = tasks.build("text")
    monkeypatch.chdir(tmp_path)
    assert tasks.build("text").options == task.options and task.options["path"] is None
    assert 5e6 < task.num_train * 256 < 5e7 and task.num_test == 512 and task.vocab_size == 256
    assert b"import " in bytes(task.sample(200).inputs.flatten().tolist())


def test_a_corpus_that_changed_has_another_digest_and_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("once upon " * 50)
    before = build(file).digest
    assert len(before) == 16 and build(file, digest=before).options["digest"] == before
    file.write_text("twice upon " * 50)
    os.utime(file, ns=(1, 1))
    after = build(file).digest
    assert after != before
    with pytest.raises(ValueError, match=f"digest {after}, but digest={before}"):
        build(file, digest=before)


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"x" * 100, "has 100 tokens, .* 5 of them for 'valid'; expected at least 11"),
        ("a.bin", b"", "a.bin is empty"),
        ("a.bin", b"xxx", "a.bin has 3 bytes; expected uint16"),
        ("a.npy", b"no array", "a.npy is not an array of numbers"),
        ("a.npy", np.zeros(900), r"integers of shape \(tokens,\), got float64 \(900,\)"),
        ("a.npy", np.zeros((30, 30), dtype=int), r"integers of shape \(tokens,\), got int64 \(30, 30\)"),
        ("a.npy", np.full(900, -1), "holds the id -1"),
        ("a.npy", np.zeros(900, dtype=object), "not an array of numbers"),
    ],
)
def test_bad_corpora(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        build(write(tmp_path / name, content))


def test_bad_requests(tmp_path, corpus):
    for path, message in (
        (tmp_path / "none.txt", "none.txt does not exist; expected a file, a folder, a glob"),
        (f"{tmp_path}/*.md", r"\*.md matches no files"),
    ):
        with pytest.raises(ValueError, match=message):
            build(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no files"):
        build(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("x" * 500)
    with pytest.raises(ValueError, match="ids.npy holds token ids and stands among 2 files"):
        build(tmp_path)
    with pytest.raises(ValueError, match="vocab_size=999 .*at least 1000 .*largest id"):
        build(corpus, vocab_size=999)
    for held_out in (0.0, 1.0, 2):
        with pytest.raises(ValueError, match="held_out="):
            build(corpus, held_out=held_out)
    with pytest.raises(ValueError, match="90 sequences asked for, but split 'train' .* has 89"):
        build(corpus).sample(90)
    with pytest.raises(ValueError, match="split of task 'text': 'dev'"):
        build(corpus).sample(1, split="dev")
