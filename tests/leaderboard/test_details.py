"""What stands behind a row, and that what the page reads is what was measured: unpacked here in another way."""

import itertools

import numpy as np
import pandas as pd
import pytest

from mad import leaderboard
from mad.leaderboard.details import details
from mad.leaderboard.pack import pack
from mad.records import table as table_of


def unpack(packed, row):
    """(setting label, point label) -> score, and setting label -> [(step, score), ...]."""
    digit = {char: i for i, char in enumerate(packed["digits"])}
    none = {code: name for name, code in packed["codes"].items()}
    low, step = packed["scale"]
    settings = row.get("settings", range(len(packed["settings"])))
    grid = row.get("grid", range(len(packed["grid"])))
    names = [f"{packed['tasks'][packed['settings'][s][0]]}: {packed['settings'][s][1]}" for s in settings]

    def score(text):
        level = digit[text[0]] * 64 + digit[text[1]]
        return none.get(level, low + step * level)

    pairs = itertools.product(names, (packed["grid"][g][0] for g in grid))
    scores = {pair: score(row["scores"][2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)}
    points, unit, bottom, top = packed["curve"]
    drawn = [n for n, s in zip(names, settings, strict=True) if packed["drawn"] is None or s in packed["drawn"]]
    size, text = 4 + points, row.get("curves", "")
    texts = [text[at : at + size] for at in range(0, len(text), size)]
    curves = {}
    for name, text in zip(drawn, texts, strict=bool(texts)):
        if text[0] != ".":
            last = unit * (digit[text[0]] * 4096 + digit[text[1]] * 64 + digit[text[2]])
            steps = np.linspace(last * digit[text[3]] / 63, last, points)
            curves[name] = [(x, bottom + (top - bottom) * digit[c] / 63) for x, c in zip(steps, text[4:], strict=True)]
    return scores, curves


def packed_of(records, points=8, curves=None, **options):
    table = table_of(records)
    board = leaderboard.build(table, **options)
    return pack(details(table, records, **options), board["arch"], points, curves), list(board["arch"])


def test_scores_of_every_setting_and_point_exact_to_three_decimals(record):
    rng = np.random.default_rng(0)
    want, records = {}, []
    for arch, n, lr, wd in itertools.product(("a", "b"), (16, 32), (1e-3, 1e-4), (0.0, 0.1)):
        accuracy = float(rng.random())
        want[arch, f"mqar: seq len {n}", f"lr {lr:g}, weight decay {wd:g}"] = accuracy
        records.append(record(arch, accuracy=accuracy, lr=lr, wd=wd, seq_len=n))
    packed, archs = packed_of(records)
    found = {
        (arch, *key): score
        for arch, row in zip(archs, packed["rows"], strict=True)
        for key, score in unpack(packed, row)[0].items()
    }
    assert found.keys() == want.keys()
    assert all(abs(found[key] - want[key]) <= 0.0005001 for key in want)
    assert [label for label, *_ in packed["grid"]] == [
        f"lr {lr:g}, weight decay {wd:g}" for lr in (1e-4, 1e-3) for wd in (0.0, 0.1)
    ]


def test_one_corpus_at_two_paths_is_one_setting(record):
    one = [record(arch, "text", path=path, digest="1f") for arch, path in (("a", "c.txt"), ("b", "/data/c.txt"))]
    [setting] = details(table_of(one), one).settings
    assert setting["label"] == "digest 1f"
    other = record("a", "text", path="/data/d.txt", digest="2e")
    labels = [setting["label"] for setting in details(table_of([*one, other]), [*one, other]).settings]
    assert labels == ["path c.txt, digest 1f", "path d.txt, digest 2e"]


def test_what_has_no_score_says_why(record):
    packed, _ = packed_of(
        [
            record("a", accuracy=0.5, lr=1e-3, seq_len=16),
            record("a", status="diverged", lr=1e-4, seq_len=16),
            record("a", status="failed", lr=1e-3, seq_len=32),
            record("b", accuracy=0.25, lr=1e-3, seq_len=16),
        ]
    )
    scores, _ = unpack(packed, packed["rows"][0])
    assert list(scores.values()) == ["diverged", 0.5, "missing", "failed"]
    scores, _ = unpack(packed, packed["rows"][1])
    assert list(scores.values()) == [0.25] and packed["rows"][1]["settings"] == [0]


def test_points_are_means_over_seeds_and_the_score_as_it_counts_stands_beside(record):
    scores = {(1e-3, 0): 0.2, (1e-3, 1): 0.8, (1e-4, 0): 0.6, (1e-4, 1): 0.4}
    packed, _ = packed_of([record("a", accuracy=score, lr=lr, seed=seed) for (lr, seed), score in scores.items()])
    (row,) = packed["rows"]
    assert list(unpack(packed, row)[0].values()) == pytest.approx([0.5, 0.5])
    assert unpack(packed, {"scores": row["best"], "grid": [0]})[0].popitem()[1] == pytest.approx(0.7)  # 0.6 and 0.8


def test_scores_beyond_the_thousandths(record):
    values = [-31.5, 2.25, 1234.5]
    table = pd.DataFrame({"arch": list("abc"), "task": "t", "bits": values})
    board = leaderboard.build(table, score="bits")
    packed = pack(details(table, score="bits"), board["arch"], 8)
    assert [unpack(packed, row)[0].popitem()[1] for row in packed["rows"]] == pytest.approx(values[::-1], abs=0.16)


def test_curves_are_those_of_the_best_point_at_their_own_steps(record):
    records = [record("a", accuracy=accuracy, lr=lr) for accuracy, lr in ((0.9, 1e-3), (0.3, 1e-4))]
    packed, _ = packed_of(records, points=10)
    (curve,) = unpack(packed, packed["rows"][0])[1].values()
    assert curve == [pytest.approx((10 * i, 0.09 * i), abs=1) for i in range(1, 11)]
    assert np.allclose([y for _, y in curve], [0.09 * i for i in range(1, 11)], atol=1 / 126 + 1e-9)
    thinned = packed_of(records, points=4)[0]
    assert [x for x, _ in unpack(thinned, thinned["rows"][0])[1].popitem()[1]] == pytest.approx(
        [10, 40, 70, 100], abs=1
    )
    assert packed_of(records, points=99)[0]["curve"][0] == 10  # no more than were measured
    records[0].curve = [{"step": 3_000_000, "accuracy": 0.5}, {"step": 9_000_000, "accuracy": float("nan")}]
    long, _ = packed_of(records[:1])
    assert unpack(long, long["rows"][0])[1].popitem()[1] == [pytest.approx((3_000_000, 0.5), rel=0.02)]


def test_where_there_is_no_room_some_settings_have_curves(record):
    records = [record("a", accuracy=0.5, seq_len=n, task=task) for n in range(1, 8) for task in ("t", "u")]
    packed, _ = packed_of(records, curves=3)
    assert packed["drawn"] == [0, 3, 6, 7, 10, 13]
    assert [name for name in unpack(packed, packed["rows"][0])[1]] == [
        f"{t}: seq len {n}" for t in "tu" for n in (1, 4, 7)
    ]


def test_a_foreign_table_has_scores_and_neither_curves_nor_commands():
    table = pd.DataFrame({"arch": ["x", "y"], "task": "t", "accuracy": [0.5, 0.25]})
    packed = pack(details(table), ["x", "y"], 8)
    assert packed["grid"] == [["all runs"]] and packed["settings"] == [[0, ""]]
    for row, score in zip(packed["rows"], (0.5, 0.25), strict=True):
        assert unpack(packed, row) == ({("t: ", "all runs"): score}, {})
        assert row["parts"] == [] and "other" not in row


def test_a_record_of_others_that_says_less_has_no_command(record):
    """But its score, beside those that have one."""
    foreign, own = record("a", accuracy=0.25), record("b", accuracy=0.5)
    del foreign.config["optim"]
    packed, _ = packed_of([foreign, own])
    rows = details(table_of([foreign, own]), [foreign, own]).rows
    assert list(rows["a"].commands.values()) == [None] and all(rows["b"].commands.values())
    assert len(packed["rows"]) == 2


def test_stacks_for_reading(record):
    stacks = {
        "a": ["hyena", "swiglu"] * 3,
        "b": ["mlp", "mlp"],
        "c": [{"name": "moe", "top_k": 1}, {"parallel": ["attention", {"name": "hyena", "filter": "rtf"}]}],
    }
    packed, archs = packed_of([record(arch, stack=stack) for arch, stack in stacks.items()])
    assert dict(zip(archs, (row["stack"] for row in packed["rows"]), strict=True)) == {
        "a": "(hyena → swiglu) × 3",
        "b": "mlp × 2",
        "c": "moe (top_k 1) → attention | hyena (filter rtf)",
    }
    assert packed["parts"][packed["rows"][0]["about"]].startswith("dim 64, norm rms")
