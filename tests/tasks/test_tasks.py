"""What all tasks share: the same data for the same arguments, options, settings, mixtures, and errors that help."""

import json
import zlib
from collections import Counter

import numpy as np
import pytest
import torch

from mad import tasks

SMALL = {
    "in_context_recall": {"vocab_size": 10, "seq_len": 20},
    "noisy_in_context_recall": {"vocab_size": 12, "seq_len": 20, "noise_vocab": 4},
    "fuzzy_in_context_recall": {"vocab_size": 10, "seq_len": 30},
    "selective_copying": {"vocab_size": 8, "seq_len": 20, "tokens_to_copy": 4},
    "compression": {"vocab_size": 8, "seq_len": 10},
    "memorization": {"vocab_size": 20, "seq_len": 10},
    "mqar": {"vocab_size": 64, "seq_len": 24, "num_kv": 4},
}
EVERY = SMALL | {"text": {"seq_len": 16}}  # whose tests follow no seed, and whose data no version of ours
MIXED = {"vocab_size": 64, "segments": [[16, 2, 300], [32, 4, 100]], "test_segments": [[16, 2, 10], [48, 8, 30]]}


def small(name):
    return tasks.build(name, **EVERY[name])


def test_every_task_is_tested_here():
    assert tasks.names() == sorted([*EVERY, "folder"])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("name", EVERY)
def test_examples(name, split):
    task = small(name)
    inputs, targets = task.sample(50, seed=3, split=split)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (50, task.input_length)
    assert 0 <= inputs.min() and inputs.max() < task.vocab_size
    assert (targets[targets != -100] >= 0).all() and targets.max() < task.vocab_size
    assert (targets != -100).any(dim=1).all()  # no sequence without a question


@pytest.mark.parametrize("name", SMALL)
def test_same_arguments_same_data_and_all_else_differs(name):
    sample = small(name).sample(40, seed=5, split="test")
    again = small(name).sample(40, seed=5, split="test")
    assert torch.equal(sample.inputs, again.inputs) and torch.equal(sample.targets, again.targets)
    rows = set(map(tuple, sample.inputs.tolist()))
    for seed, split in ((6, "test"), (5, "valid"), (5, "train")):
        other = small(name).sample(40, seed=seed, split=split).inputs
        assert len(rows & set(map(tuple, other.tolist()))) < 4  # by chance alone


def test_a_tasks_data_are_what_they_were():
    """Results of different versions compare only while this holds. NumPy is pinned, as it may change its streams."""
    digests = {}
    for name in SMALL:
        examples = small(name).sample(2000, seed=1, split="train")
        digests[name] = zlib.crc32(b"".join(t.numpy().astype("<i8").tobytes() for t in examples))
    assert digests == {
        "in_context_recall": 1109023378,
        "noisy_in_context_recall": 2169476864,
        "fuzzy_in_context_recall": 2370162518,
        "selective_copying": 858198424,
        "compression": 4230431602,
        "memorization": 3005961421,
        "mqar": 448572743,
    }


def test_more_sequences_than_a_chunk(monkeypatch):
    monkeypatch.setattr("mad.tasks.base.CHUNK_TOKENS", 190)
    inputs = small("in_context_recall").sample(101).inputs
    assert len(set(map(tuple, inputs.tolist()))) == 101  # no chunk repeats another


@pytest.mark.parametrize("name", EVERY)
def test_options_rebuild_the_task(name):
    task = small(name)
    assert set(task.options) == set(tasks.options(name)) and task.options.items() >= EVERY[name].items()
    again = tasks.build(name, **json.loads(json.dumps(task.options)))
    assert torch.equal(again.sample(5).inputs, task.sample(5).inputs)
    assert task.parts("train") == [(task, None)]


def test_numbers_of_numpys_are_numbers():
    task = tasks.build("mqar", **{name: np.int64(value) for name, value in SMALL["mqar"].items()})
    assert torch.equal(task.sample(5).inputs, small("mqar").sample(5).inputs) and type(task.vocab_size) is int


def test_baselines():
    lengths = {name: tasks.build(name).input_length for name in SMALL}
    assert lengths == {
        "in_context_recall": 127,
        "noisy_in_context_recall": 127,
        "fuzzy_in_context_recall": 128,
        "selective_copying": 256,
        "compression": 32,
        "memorization": 32,
        "mqar": 64,
    }
    sizes = {name: (tasks.build(name).num_train, tasks.build(name).num_test) for name in SMALL}
    assert sizes.pop("memorization") == (256, 1_280)
    assert sizes.pop("mqar") == (100_000, 3_000)
    assert set(sizes.values()) == {(12_800, 1_280)}
    assert [name for name in SMALL if tasks.build(name).head == "autoencoder"] == ["compression"]


def test_the_66_settings():
    settings = tasks.settings("mad")
    assert Counter(name for name, _ in settings) == {
        "in_context_recall": 11,
        "fuzzy_in_context_recall": 11,
        "noisy_in_context_recall": 14,
        "selective_copying": 13,
        "compression": 11,
        "memorization": 6,
    }
    assert len({json.dumps(setting, sort_keys=True) for setting in settings}) == 66
    baselines = {name: options for name, options in reversed(settings)}
    for name, options in settings:
        changed = [key for key, value in options.items() if value != baselines[name][key]]
        assert len(changed) == (options != baselines[name])  # one at a time
        task = tasks.build(name, **{key: value for key, value in options.items() if key != "num_train"})
        assert options["num_train"] <= task.num_train
    for name, options in baselines.items():
        assert options.pop("num_train") == tasks.build(name).num_train and options == tasks.options(name)


def test_settings_are_copies():
    tasks.settings("mad")[0][1]["vocab_size"] = 7
    assert tasks.settings("mad")[0][1]["vocab_size"] == 16


def test_a_mixture_of_lengths():
    task = tasks.build("mqar", **MIXED)
    assert (task.num_train, task.num_test, task.input_length) == (400, 40, 48)
    for split, lengths in (("train", [16, 32]), ("valid", [16, 48]), ("test", [16, 48])):
        parts = task.parts(split)
        assert [part.input_length for part, _ in parts] == lengths
        assert [n for _, n in parts] == ([300, 100] if split == "train" else [10, 30])
    inputs, targets = task.sample(40)
    assert inputs.shape == (40, 48)
    assert torch.equal(inputs[:30, :16], task.parts("train")[0][0].sample(30).inputs)
    assert torch.equal(targets[30:, :32], task.parts("train")[1][0].sample(10).targets)
    assert not inputs[:30, 16:].any() and (targets[:30, 16:] == -100).all()
    assert task.sample(1).inputs.shape == (1, 48)


def test_a_mixture_that_is_half_given():
    trained = tasks.build("mqar", vocab_size=64, segments=[[16, 2, 300], [32, 4, 100]])
    assert [(part.input_length, n) for part, n in trained.parts("test")] == [(16, 1000), (32, 1000)]
    tested = tasks.build("mqar", vocab_size=64, seq_len=16, num_kv=2, test_segments=((32, 4, 20),))
    assert [(part.input_length, n) for part, n in tested.parts("train")] == [(16, 100_000)]
    assert tested.options["test_segments"] == [[32, 4, 20]]


BAD = [
    ("hyena_recall", {}, r"unknown task 'hyena_recall'.*did you mean"),
    ("mqar", {"num_kvs": 4}, r"unknown option of task 'mqar': 'num_kvs' \(did you mean 'num_kv'\?\)"),
    ("in_context_recall", {"seq_len": 127}, "task 'in_context_recall': seq_len=127 is odd.*126, 128"),
    ("noisy_in_context_recall", {"seq_len": 33}, "seq_len=33 is odd.*32, 34"),
    ("memorization", {"seq_len": 31}, "seq_len=31 is odd.*30, 32"),
    ("mqar", {"seq_len": 65}, "seq_len=65 is odd.*64, 66"),
    ("in_context_recall", {"seq_len": 2}, "seq_len=2 .*at least 4"),
    ("selective_copying", {"seq_len": 33}, "seq_len=33 .*at least 34 .*tokens_to_copy=16"),
    ("fuzzy_in_context_recall", {"seq_len": None}, "seq_len=None must be a whole number"),
    (["mqar"], {}, r"unknown task \['mqar'\]"),
    ("text", {"path": ""}, "path is empty"),
    ("fuzzy_in_context_recall", {"seq_len": 12}, "seq_len=12 .*at least 13"),
    ("mqar", {"seq_len": 64, "num_kv": 17}, "seq_len=64 .*at least 68"),
    ("compression", {"seq_len": 1}, "seq_len=1 .*at least 2"),
    ("in_context_recall", {"vocab_size": 1}, "vocab_size=1 .*at least 2"),
    ("noisy_in_context_recall", {"vocab_size": 17}, "vocab_size=17 .*at least 18"),
    ("selective_copying", {"vocab_size": 2}, "vocab_size=2 .*at least 3"),
    ("compression", {"vocab_size": 1}, "vocab_size=1 .*at least 2"),
    ("memorization", {"vocab_size": 2}, "vocab_size=2 .*at least 3"),
    ("mqar", {"vocab_size": 64, "seq_len": 64}, "vocab_size=64 .*at least 65 .*seq_len=64"),
    ("mqar", {"vocab_size": 64, "num_kv": 32}, "num_kv=32 .*at most 31, or vocab_size of at least 66"),
    ("fuzzy_in_context_recall", {"k_motif": 8}, "k_motif=8 .*at most 7, or vocab_size of at least 17"),
    ("fuzzy_in_context_recall", {"v_motif": 9}, "v_motif=9 .*at most 8, or vocab_size of at least 18"),
    ("fuzzy_in_context_recall", {"vocab_size": 9000, "k_motif": 6}, "k_motif=6 .*too many"),
    ("noisy_in_context_recall", {"frac_noise": 1.5}, "frac_noise=1.5 .*from 0 to 1"),
    ("noisy_in_context_recall", {"frac_noise": float("nan")}, "frac_noise=nan"),
    ("noisy_in_context_recall", {"frac_noise": True}, "frac_noise=True must be a finite number from 0 to 1"),
    ("compression", {"vocab_size": "16"}, "vocab_size='16' must be a whole number"),
    ("mqar", {"power": "steep"}, "power='steep'"),
    ("mqar", {"random_filler": 1}, "task 'mqar': random_filler must be true or false, got 1"),
    ("mqar", {"segments": [[64, 4]]}, "segments=.*seq_len, num_kv, examples"),
    ("mqar", {"segments": []}, "segments="),
    ("mqar", {"test_segments": 64}, "test_segments=64"),
    ("mqar", {"segments": [[64, 4, 100], [64, 20, 100]]}, "seq_len=64 .*num_kv=20"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        tasks.build(name, **options)


@pytest.fixture
def parity(monkeypatch):
    """Maker of a task of somebody's own, registered for the length of a test: (generate, members of its class)."""
    for name in ("_classes", "_tags"):
        monkeypatch.setattr(tasks.registry, name, dict(getattr(tasks.registry, name)))

    def make(generate=None, name="parity", **members):
        def init(self, *, vocab_size=2, seq_len=6, flips=1):
            tasks.Task.__init__(self, vocab_size=vocab_size, seq_len=seq_len)
            self.flips = flips

        made = {"__init__": init, "generate": lambda self, *given: generate(*given), **members}
        return tasks.register(name)(type("Parity", (tasks.Task,), made))

    return make


def test_a_task_of_ones_own(parity):
    parity(lambda rng, num, train: (inputs := rng.integers(0, 2, (num, 6)), inputs.cumsum(1) % 2))
    inputs, targets = tasks.build("parity").sample(9, seed=1)
    assert torch.equal(inputs.cumsum(1) % 2, targets) and tasks.build("parity").options["flips"] == 1
    assert not torch.equal(inputs, tasks.build("parity", flips=2).sample(9, seed=1).inputs)


BAD_INITS = [
    (lambda self, vocab_size=2, seq_len=6: None, "option 'vocab_size' of Parity.__init__ is not keyword-only"),
    (lambda self, *, seq_len, vocab_size=2: None, "option 'seq_len' of Parity.__init__ has no default"),
    (lambda self, *, flips=1, **others: None, "option 'others' of Parity.__init__ is not keyword-only"),
]


@pytest.mark.parametrize(("init", "message"), BAD_INITS)
def test_options_that_nobody_could_set_are_refused(parity, init, message):
    with pytest.raises(ValueError, match=f"task 'parity': {message}; expected def __init__.self, .,"):
        parity(__init__=init)
    with pytest.raises(ValueError, match="task 'parity': expected a class derived from tasks.Task, got <function"):
        tasks.register("parity")(lambda: None)
    with pytest.raises(ValueError, match="task 'parity': an option cannot be called 'name'"):
        parity(__init__=lambda self, *, name="x": None)


@pytest.mark.parametrize("name", ["my task", "a,b", "null", "True", "3", "1e3", "-a", "a-", 3, ""])
def test_names_that_nobody_could_choose_are_refused(name):
    with pytest.raises(
        ValueError, match=f"a task's name is a word of letters, digits, _ and -, begun by a letter, got {name!r}"
    ):
        tasks.register(name)(tasks.registry.get("mqar"))


def test_a_name_of_two_words(parity):
    parity(name="my-parity_2")
    assert "my-parity_2" in tasks.names()


def test_options_that_are_not_kept_are_refused(parity):
    parity(__init__=lambda self, *, vocab_size=2, seq_len=6: None)
    with pytest.raises(ValueError, match="task 'parity' must keep its option as self.vocab_size, which its __init__"):
        tasks.build("parity")
    parity()
    with pytest.raises(
        ValueError, match="task 'parity' must keep its option 'flips' as a plain .* self.flips is ndarray"
    ):
        tasks.build("parity", flips=np.zeros(3))
    with pytest.raises(ValueError, match="task 'parity': vocab_size=2.0 must be a whole number of at least 1"):
        tasks.build("parity", vocab_size=2.0)


BITS = np.zeros((4, 6), dtype=int)
BAD_EXAMPLES = [
    (BITS, r"generate must return \(inputs, targets\), got ndarray"),
    ((BITS[:, :5], BITS), r"inputs must be integers \(4, 6\), which is \(num, input_length\), got int64 \(4, 5\)"),
    ((BITS, BITS[:, 0]), r"targets must be integers \(4, 6\), .* got int64 \(4,\)"),
    ((BITS + 0.5, BITS), r"inputs must be integers \(4, 6\), .* got float64"),
    ((BITS + 2, BITS), "inputs hold 2; expected ids from 0 to 1, below vocab_size=2"),
    ((BITS - 100, BITS), "inputs hold -100; expected ids from 0 to 1"),
    ((BITS, BITS - 1), "targets hold -1; expected ids from 0 to 1, .* or -100 where nothing is asked"),
]


@pytest.mark.parametrize(("made", "message"), BAD_EXAMPLES)
def test_examples_that_are_none_are_refused(parity, made, message):
    """A fraction would be cut off, an id that is none is an error of the model's, on a GPU the end of its process."""
    parity(lambda rng, num, train: made)
    with pytest.raises(ValueError, match=f"task 'parity': {message}"):
        tasks.build("parity").sample(4)


def test_bad_requests():
    task = small("mqar")
    for mixture in (task, tasks.build("mqar", **MIXED)):
        with pytest.raises(ValueError, match=r"split of task 'mqar': 'tests' \(did you mean 'test'\?\)"):
            mixture.sample(1, split="tests")
        with pytest.raises(ValueError, match="num=0 "):
            mixture.sample(0)
        with pytest.raises(ValueError, match="seed=-1 "):
            mixture.sample(1, seed=-1)
        with pytest.raises(ValueError, match="split"):
            mixture.parts("dev")
    assert task.sample(np.int64(2)).inputs.shape == (2, 24)
    with pytest.raises(ValueError, match="unknown protocol 'made' .*did you mean 'mad'"):
        tasks.settings("made")


def test_an_option_is_kept_as_it_was_given(monkeypatch):
    class Longer(tasks.Task):
        name = "longer"

        def __init__(self, *, vocab_size=4, seq_len=8):
            super().__init__(vocab_size=vocab_size, seq_len=seq_len + 1)

    monkeypatch.setitem(tasks.registry._classes, "longer", Longer)
    with pytest.raises(
        ValueError, match="must keep its option 'seq_len' as it was given: 8 became 9, and built of that"
    ):
        tasks.build("longer")


def test_a_mixture_of_a_subclass_is_of_the_subclass(monkeypatch):
    class Zero(tasks.registry.get("mqar")):
        name = "zero"

        def __init__(self, *, vocab_size=64, seq_len=16, num_kv=2, offset=0, segments=None):
            self.test_segments, self.power, self.random_filler = None, 0.01, True
            super().__init__(vocab_size=vocab_size, seq_len=seq_len, num_kv=num_kv, segments=segments)
            self.offset = offset

        def generate(self, rng, num, train):
            inputs, targets = super().generate(rng, num, train)
            return inputs * 0 + self.offset, targets

    monkeypatch.setitem(tasks.registry._classes, "zero", Zero)
    task = tasks.build("zero", segments=[[16, 2, 4], [32, 4, 4]], offset=3)
    assert (task.sample(8).inputs[4:] == 3).all()


def test_equal_segments_would_have_equal_examples():
    with pytest.raises(ValueError, match="has a seq_len and num_kv twice, whose examples would be the same"):
        tasks.build("mqar", vocab_size=64, segments=[[16, 2, 4], [32, 4, 4], [16, 2, 4]])
