"""The published benchmark's layout on disk: what is written is read again, and what is wrong with a folder is said."""

import numpy as np
import pytest
import torch

from mad import tasks
from mad.tasks.folder import write_folder
from mad.training.data import load


@pytest.fixture
def folder(tmp_path):
    write_folder(tasks.build("selective_copying", vocab_size=9, seq_len=12, tokens_to_copy=3), tmp_path, 30, 20, seed=4)
    return tmp_path


def test_round_trip(folder):
    source = tasks.build("selective_copying", vocab_size=9, seq_len=12, tokens_to_copy=3)
    task = tasks.build("folder", path=str(folder))
    assert (task.vocab_size, task.input_length, task.num_train, task.num_test, task.head) == (9, 12, 30, 20, "lm")
    assert task.splits == ("train", "test")
    for split, num in (("train", 30), ("test", 20)):
        for got, want in zip(task.sample(num - 1, split=split), source.sample(num, 4, split), strict=True):
            assert got.dtype == torch.int64 and torch.equal(got, want[:-1])
    assert tasks.build("folder", **task.options).options == task.options
    assert tasks.build("folder", path=str(folder), head="autoencoder", vocab_size=20).vocab_size == 20


def test_narrow_integers_and_lengths_that_differ(folder):
    for name in ("inputs", "targets"):
        array = np.load(folder / "test" / f"{name}.npy")
        np.save(folder / "test" / f"{name}.npy", np.concatenate([array, array], axis=1).astype(np.int16))
    task = tasks.build("folder", path=str(folder))
    assert task.input_length == 24 and task.sample(3, split="test").inputs.shape == (3, 24)
    assert task.sample(3, split="test").inputs.dtype == torch.int64


def test_a_file_that_changed_is_read_again(folder):
    assert tasks.build("folder", path=str(folder)).vocab_size == 9
    array = np.load(folder / "train" / "inputs.npy")
    before = tasks.build("folder", path=str(folder), vocab_size=30)
    assert load(before, 4, 0, "train", "cpu")[0].inputs.max() < 9
    np.save(folder / "train" / "inputs.npy", array + 10)
    assert tasks.build("folder", path=str(folder)).vocab_size == 19
    after = tasks.build("folder", path=str(folder), vocab_size=30)
    assert load(after, 4, 0, "train", "cpu")[0].inputs.min() > 9 and after.digest != before.digest
    with pytest.raises(ValueError, match=f"has the digest {after.digest}, but digest={before.digest} was asked for"):
        tasks.build("folder", **before.options)
    np.save(folder / "train" / "inputs.npy", array.astype(np.int16))  # the same ids
    assert tasks.build("folder", path=str(folder)).digest == before.digest


def spoil(array):
    return {
        "float": (array.astype(float), r"inputs.npy must hold integers of shape \(sequences, tokens\), got float64"),
        "flat": (array.ravel(), r"integers of shape .* got int64 \(360,\)"),
        "fewer": (array[:-1], r"train must have one shape, got \(29, 12\) and \(30, 12\)"),
        "objects": (array.astype(object), "not an array of numbers"),
        "none": (array[:0], r"inputs.npy (is empty|is not an array)"),
        "negative": (np.where(array == 0, -3, array), "inputs.npy holds the id -3"),
    }


@pytest.mark.parametrize("fault", spoil(np.zeros((30, 12), dtype=np.int64)))
def test_bad_arrays(folder, fault):
    file = folder / "train" / "inputs.npy"
    array, message = spoil(np.load(file))[fault]
    np.save(file, array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        tasks.build("folder", path=str(folder))


def test_bad_files(folder):
    (folder / "test" / "targets.npy").write_text("no array")
    with pytest.raises(ValueError, match="targets.npy is not an array of numbers"):
        tasks.build("folder", path=str(folder))
    (folder / "test" / "targets.npy").unlink()
    with pytest.raises(ValueError, match="targets.npy does not exist; expected train/ and test/"):
        tasks.build("folder", path=str(folder))


def test_bad_requests(folder):
    task = tasks.build("folder", path=str(folder))
    with pytest.raises(ValueError, match="31 sequences asked for, but split .train. .* has 30"):
        task.sample(31)
    with pytest.raises(ValueError, match="split of task 'folder': 'valid'.*expected one of: test, train"):
        task.sample(1, split="valid")
    with pytest.raises(ValueError, match="vocab_size=8 .*at least 9 .*largest id"):
        tasks.build("folder", path=str(folder), vocab_size=8)
    with pytest.raises(ValueError, match="unknown head 'ln' .*did you mean 'lm'"):
        tasks.build("folder", path=str(folder), head="ln")
    with pytest.raises(ValueError, match="needs path="):
        tasks.build("folder")
