"""Each task's definition, checked sequence by sequence on drawn options and seeds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mad import tasks

IGNORE = -100
SEEDS, SPLITS = st.integers(0, 2**32), st.sampled_from(["train", "valid", "test"])
properties = settings(deadline=None, derandomize=True, max_examples=60)


def rows(task, seed, split, num=8):
    examples = task.sample(num, seed=seed, split=split)
    return zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True)


def check_recall(inputs, targets, split, num_ids, vocab_size):
    """Both kinds of recall: ids from num_ids on are noise."""
    num_keys = num_ids // 2
    tokens = inputs + targets[-1:]  # the last target is asked for in every split
    pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
    value_of, want = {}, []
    for place, (key, value) in enumerate(pairs):
        known = key in value_of
        if key >= num_ids:
            assert num_ids <= value < vocab_size and key < vocab_size and place < len(pairs) - 1
        else:
            assert 0 <= key < num_keys <= value < num_ids and value_of.setdefault(key, value) == value
        want += [IGNORE, value if known else IGNORE]
    assert known  # the last key was shown before
    assert targets == (tokens[1:] if split == "train" else want[1:])


@properties
@given(st.integers(2, 40), st.integers(2, 30), SEEDS, SPLITS)
def test_in_context_recall(vocab_size, length, seed, split):
    task = tasks.build("in_context_recall", vocab_size=vocab_size, seq_len=2 * length)
    for inputs, targets in rows(task, seed, split):
        check_recall(inputs, targets, split, vocab_size, vocab_size)


@properties
@given(st.integers(2, 20), st.integers(1, 9), st.integers(2, 30), st.floats(0, 1), SEEDS, SPLITS)
def test_noisy_in_context_recall(num_ids, noise_vocab, length, frac_noise, seed, split):
    options = {"vocab_size": num_ids + noise_vocab, "noise_vocab": noise_vocab, "frac_noise": frac_noise}
    task = tasks.build("noisy_in_context_recall", seq_len=2 * length, **options)
    for inputs, targets in rows(task, seed, split):
        check_recall(inputs, targets, split, num_ids, task.vocab_size)


@st.composite
def fuzzy_options(draw):
    k_motif, v_motif = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return {
        "k_motif": k_motif,
        "v_motif": v_motif,
        "vocab_size": max(2 * k_motif + 1, 2 * v_motif) + draw(st.integers(0, 8)),
        "seq_len": 2 * (k_motif + v_motif) + 1 + draw(st.integers(0, 60)),
    }


@properties
@given(fuzzy_options(), SEEDS, SPLITS)
def test_fuzzy_in_context_recall(options, seed, split):
    task = tasks.build("fuzzy_in_context_recall", **options)
    vocab_size, length, k_motif, v_motif = (options[k] for k in ("vocab_size", "seq_len", "k_motif", "v_motif"))
    num_keys, longest = (vocab_size - 1) // 2, k_motif + v_motif
    for inputs, targets in rows(task, seed, split):
        tokens = inputs + targets[-1:]
        assert len(inputs) == length
        padding = tokens.count(vocab_size - 1)
        assert tokens[:padding] == [vocab_size - 1] * padding

        pairs = [([], [])]  # runs of keys' ids and of values' ids alternate
        for token in tokens[padding:]:
            if token < num_keys and pairs[-1][1]:
                pairs.append(([], []))
            pairs[-1][token >= num_keys].append(token)
        starts = np.cumsum([0] + [len(k) + len(v) for k, v in pairs])

        value_of, want = {}, [IGNORE] * padding
        for key, value in pairs:
            assert len(set(key)) == len(key) and len(set(value)) == len(value)
            assert (k_motif if split != "train" else 1) <= len(key) <= k_motif and 1 <= len(value) <= v_motif
            known = tuple(key) in value_of
            assert value_of.setdefault(tuple(key), value) == value
            want += [IGNORE] * len(key) + (value if known else [IGNORE] * len(value))
        assert known  # the probe, last, was shown before
        assert targets == (tokens[1:] if split == "train" else want[1:])

        end = length - sum(map(len, pairs[-1])) - longest
        assert starts[-3] < end  # where the stream's last pair began ...
        if pairs[-2] != pairs[-1]:  # ... and, if the probe did not replace it, ended
            assert starts[-2] >= end


@properties
@given(st.integers(3, 20), st.integers(1, 10), st.integers(2, 40), SEEDS, SPLITS)
def test_selective_copying(vocab_size, to_copy, more, seed, split):
    length, blank, marker = 2 * to_copy + more, vocab_size - 2, vocab_size - 1
    task = tasks.build("selective_copying", vocab_size=vocab_size, seq_len=length, tokens_to_copy=to_copy)
    for inputs, targets in rows(task, seed, split):
        start = length - to_copy
        content = [token for token in inputs[: start - 1] if token != blank]
        assert len(content) == to_copy and max(content) < blank and inputs[start - 2] != blank
        assert inputs[start - 1 :] == [marker] + [blank] * to_copy
        assert targets == [IGNORE] * start + content


@properties
@given(st.integers(2, 20), st.integers(2, 40), SEEDS, SPLITS)
def test_compression(vocab_size, length, seed, split):
    task = tasks.build("compression", vocab_size=vocab_size, seq_len=length)
    for inputs, targets in rows(task, seed, split):
        assert inputs == targets and inputs[-1] == vocab_size - 1
        assert max(inputs[:-1]) < vocab_size - 1


@properties
@given(st.integers(3, 60), st.integers(1, 20), SEEDS)
def test_memorization(vocab_size, length, seed):
    """One map for all seeds and splits, one-to-one; the value itself is never an input."""
    task = tasks.build("memorization", vocab_size=vocab_size, seq_len=2 * length)
    num_keys, value_of = (vocab_size - 1) // 2, {}
    for each, split in ((0, "train"), (seed, "train"), (seed, "valid"), (seed, "test")):
        for inputs, targets in rows(task, each, split):
            assert set(inputs[1::2]) == {vocab_size - 1} and max(inputs[::2]) < num_keys
            assert set(targets[::2]) == {IGNORE}
            for key, value in zip(inputs[::2], targets[1::2], strict=True):
                assert num_keys <= value < vocab_size - 1 and value_of.setdefault(key, value) == value
    assert len(set(value_of.values())) == len(value_of)


def test_memorizations_map_is_shuffled_and_that_of_the_vocabulary():
    def values(**options):
        return tasks.build("memorization", **options).value_of().tolist()

    assert values() != sorted(values()) and values() == values(seq_len=8)
    assert values(vocab_size=257)[:10] != values()[:10]


@properties
@given(st.integers(1, 6), st.integers(0, 10), st.integers(1, 20), st.floats(-1, 2), st.booleans(), SEEDS, SPLITS)
def test_mqar(num_kv, more, more_ids, power, random_filler, seed, split):
    length = 4 * num_kv + 2 * more
    options = {"num_kv": num_kv, "seq_len": length, "power": power, "random_filler": random_filler}
    task = tasks.build("mqar", vocab_size=length + more_ids, **options)
    half, context = task.vocab_size // 2, 2 * num_kv
    for inputs, targets in rows(task, seed, split):
        keys, values = inputs[:context:2], inputs[1:context:2]
        assert len(set(keys)) == len(set(values)) == num_kv
        assert 1 <= min(keys) and max(keys) < half <= min(values)
        asked = [place for place, target in enumerate(targets) if target != IGNORE]
        assert min(asked) >= context and not any(place % 2 for place in asked)
        queries = [(inputs[place], targets[place]) for place in asked]
        assert sorted(queries) == sorted(zip(keys, values, strict=True))
        if not random_filler:
            assert not any(inputs[place] for place in range(context, length) if place not in asked)
