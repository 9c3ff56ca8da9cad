"""Each generator against a slow one that follows the definition word by word, by chi-square over many sequences.

The sequences are so short that whole ones, or telling features of them, can be counted as categories.
"""

import random
from collections import Counter

import pytest

from mad import tasks

IGNORE = -100


def surplus(ours, theirs):
    """Two-sample chi-square, in standard deviations above what equal distributions give; rare categories are pooled."""
    ours, theirs = Counter(ours), Counter(theirs)
    n, m = ours.total(), theirs.total()
    cells, rest = [], [0, 0]
    for category in ours | theirs:
        pair = ours[category], theirs[category]
        if sum(pair) < 20:
            rest = [rest[0] + pair[0], rest[1] + pair[1]]
        else:
            cells.append(pair)
    if sum(rest) >= 20:
        cells.append(tuple(rest))
    freedom = len(cells) - 1
    if not freedom:  # one category: nothing can differ
        return 0.0
    chi2 = sum((a * (m / n) ** 0.5 - b * (n / m) ** 0.5) ** 2 / (a + b) for a, b in cells)
    return (chi2 - freedom) / (2 * freedom) ** 0.5


def whole(inputs, targets):
    return {"whole": (*inputs, *targets)}


def same_distribution(name, options, split, literal, features=whole, ours=20_000, theirs=10_000):
    """Compare the features, named categories, of a task's sequences with those of `literal(rng, train, **options)`."""
    examples = tasks.build(name, **options).sample(ours, seed=11, split=split)
    got = [features(*each) for each in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True)]
    rng = random.Random(0)
    want = [features(*literal(rng, split == "train", **options)) for _ in range(theirs)]
    for feature in want[0]:
        excess = surplus([each[feature] for each in got], [each[feature] for each in want])
        assert excess < 5, f"{name} {split}: {feature} differs by {excess:.1f} standard deviations"


def test_the_comparison_notices_small_differences():
    rng = random.Random(1)
    fair = [rng.randrange(6) for _ in range(40_000)]
    loaded = [rng.choice((0, 1, 2, 3, 4, 5, 5)) for _ in range(10_000)]
    assert surplus(fair, [rng.randrange(6) for _ in range(10_000)]) < 5 < surplus(fair, loaded)
    with pytest.raises(AssertionError, match="whole differs"):
        same_distribution("compression", {"vocab_size": 4, "seq_len": 3}, "train", unfair_compression)


def unfair_compression(rng, train, vocab_size, seq_len):
    inputs = [min(rng.randrange(vocab_size), vocab_size - 2) for _ in range(seq_len - 1)] + [vocab_size - 1]
    return inputs, inputs


def recall(rng, train, vocab_size, seq_len, noise_vocab=0, frac_noise=0.0):
    num_ids = vocab_size - noise_vocab
    pairs = seq_len // 2
    never_noise = rng.randrange(pairs - 1)
    value_of, tokens, targets = {}, [], []
    for pair in range(pairs - 1):
        if pair != never_noise and rng.random() < frac_noise:
            tokens += [rng.randrange(num_ids, vocab_size), rng.randrange(num_ids, vocab_size)]
            targets += [IGNORE, IGNORE]
            continue
        key = rng.randrange(num_ids // 2)
        known = key in value_of
        if not known:
            value_of[key] = rng.randrange(num_ids // 2, num_ids)
        tokens += [key, value_of[key]]
        targets += [IGNORE, value_of[key] if known else IGNORE]
    key = rng.choice(list(value_of))
    tokens += [key, value_of[key]]
    targets += [IGNORE, value_of[key]]
    return tokens[:-1], (tokens if train else targets)[1:]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("options", [{"vocab_size": 4, "seq_len": 8}, {"vocab_size": 7, "seq_len": 6}])
def test_in_context_recall(options, split):
    same_distribution("in_context_recall", options, split, recall)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("frac_noise", [0.3, 1.0])
def test_noisy_in_context_recall(frac_noise, split):
    options = {"vocab_size": 5, "seq_len": 8, "noise_vocab": 1, "frac_noise": frac_noise}
    same_distribution("noisy_in_context_recall", options, split, recall)


def selective_copying(rng, train, vocab_size, seq_len, tokens_to_copy):
    blank = vocab_size - 2
    content = [rng.randrange(blank) for _ in range(tokens_to_copy)]
    blanks = [0] * tokens_to_copy
    for _ in range(seq_len - 2 * tokens_to_copy - 1):
        blanks[rng.randrange(tokens_to_copy)] += 1
    inputs = []
    for token, before in zip(content, blanks, strict=True):
        inputs += [blank] * before + [token]
    inputs += [vocab_size - 1] + [blank] * tokens_to_copy
    return inputs, [IGNORE] * (seq_len - tokens_to_copy) + content


def test_selective_copying():
    options = {"vocab_size": 4, "seq_len": 10, "tokens_to_copy": 3}
    same_distribution("selective_copying", options, "train", selective_copying)


def compression(rng, train, vocab_size, seq_len):
    inputs = [rng.randrange(vocab_size - 1) for _ in range(seq_len - 1)] + [vocab_size - 1]
    return inputs, inputs


def test_compression():
    same_distribution("compression", {"vocab_size": 4, "seq_len": 5}, "train", compression)


def memorization(rng, train, vocab_size, seq_len):
    value_of = tasks.build("memorization", vocab_size=vocab_size).value_of()
    keys = [rng.randrange((vocab_size - 1) // 2) for _ in range(seq_len // 2)]
    inputs = [token for key in keys for token in (key, vocab_size - 1)]
    return inputs, [token for key in keys for token in (IGNORE, int(value_of[key]))]


@pytest.mark.parametrize("split", ["train", "test"])
def test_memorization(split):
    options = {"vocab_size": 10, "seq_len": 6}
    same_distribution("memorization", options, split, memorization, theirs=2_000)


def fuzzy(rng, train, vocab_size, seq_len, k_motif, v_motif):
    """The stream is built pair by pair, with one dictionary of what keys stand for."""
    ids = list(range(vocab_size - 1))
    key_ids, value_ids = ids[: len(ids) // 2], ids[len(ids) // 2 :]

    def draw_key():
        return tuple(rng.sample(key_ids, rng.randint(1, k_motif) if train else k_motif))

    def draw_value():
        return tuple(rng.sample(value_ids, rng.randint(1, v_motif)))

    probe = (draw_key(), draw_value())
    probe_size = len(probe[0]) + len(probe[1])
    value_of = {probe[0]: probe[1]}
    wanted = rng.randrange(seq_len - 2 * probe_size)
    pairs, length, placed = [], 0, False
    while length < seq_len - probe_size - (k_motif + v_motif):
        if length >= wanted and not placed:
            pair = probe
        else:
            key = draw_key()
            pair = (key, value_of.setdefault(key, draw_value()))
        placed = placed or pair[0] == probe[0]
        pairs.append(pair)
        length += len(pair[0]) + len(pair[1])
    if not placed:
        pairs[-1] = probe
    pairs.append(probe)

    tokens, targets, shown = [], [], set()
    for key, value in pairs:
        tokens += [*key, *value]
        targets += [IGNORE] * len(key) + (list(value) if key in shown else [IGNORE] * len(value))
        shown.add(key)
    padding = seq_len + 1 - len(tokens)
    tokens, targets = [vocab_size - 1] * padding + tokens, [IGNORE] * padding + targets
    return tokens[:-1], (tokens if train else targets)[1:]


def fuzzy_pairs(inputs, targets, vocab_size):
    tokens = [token for token in [*inputs, targets[-1]] if token != vocab_size - 1]
    pairs = []
    for place, token in enumerate(tokens):
        is_key = token < (vocab_size - 1) // 2
        if is_key and (place == 0 or tokens[place - 1] >= (vocab_size - 1) // 2):
            pairs.append(((), ()))
        pairs[-1] = (pairs[-1][0] + (token,), pairs[-1][1]) if is_key else (pairs[-1][0], pairs[-1][1] + (token,))
    return pairs


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 6, "seq_len": 14, "k_motif": 1, "v_motif": 2},
        {"vocab_size": 7, "seq_len": 9, "k_motif": 2, "v_motif": 1},
        {"vocab_size": 8, "seq_len": 40, "k_motif": 3, "v_motif": 3},
        {"vocab_size": 16, "seq_len": 64, "k_motif": 3, "v_motif": 3},
    ],
)
def test_fuzzy_in_context_recall(options, split):
    def features(inputs, targets):
        pairs = fuzzy_pairs(inputs, targets, options["vocab_size"])
        sizes = [(len(key), len(value)) for key, value in pairs]
        probe = pairs[-1]
        return {
            "whole": (*inputs, *targets),
            "padding": inputs.count(options["vocab_size"] - 1),
            "questions": sum(target != IGNORE for target in targets),
            "last questions": tuple(targets[-5:]),
            "number of pairs": len(pairs),
            "different keys": len({key for key, _ in pairs}),
            "first sizes": tuple(sizes[:3]),
            "last sizes": tuple(sizes[-2:]),
            "first pair": pairs[0],
            "probe": probe,
            "where the probe was shown": tuple(i for i, (key, _) in enumerate(pairs[:-1]) if key == probe[0]),
        }

    same_distribution("fuzzy_in_context_recall", options, split, fuzzy, features)


def mqar(rng, train, vocab_size, seq_len, num_kv, power, random_filler):
    keys = rng.sample(range(1, vocab_size // 2), num_kv)
    values = rng.sample(range(vocab_size // 2, vocab_size), num_kv)
    context = 2 * num_kv
    gaps = list(range((seq_len - context) // 2))
    inputs = [token for pair in zip(keys, values, strict=True) for token in pair]
    inputs += [rng.randrange(vocab_size) if random_filler else 0 for _ in range(seq_len - context)]
    targets = [IGNORE] * seq_len
    for key, value in zip(keys, values, strict=True):
        (gap,) = rng.choices(gaps, weights=[(g + 1) ** (power - 1) for g in gaps])
        gaps.remove(gap)
        inputs[context + 2 * gap], targets[context + 2 * gap] = key, value
    return inputs, targets


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("power", "random_filler"), [(0.01, True), (0.01, False), (1.0, True)])
def test_mqar(power, random_filler, split):
    options = {"vocab_size": 17, "seq_len": 14, "num_kv": 3, "power": power, "random_filler": random_filler}

    def features(inputs, targets):
        return {
            "gaps": tuple(targets.index(value) for value in inputs[1:6:2]),  # in the order of the pairs
            "keys": tuple(inputs[:6:2]),
            "values": tuple(inputs[1:6:2]),
            "order of the queries": tuple(target for target in targets if target != IGNORE),
            "token after the context": (inputs[6], targets[6]),
            "filler": (inputs[7], inputs[11]),
        }

    same_distribution("mqar", options, split, mqar, features)
