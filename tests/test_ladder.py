"""Ladders: a rung becomes a plain architecture with its own learning rate, and mistakes are named."""

import pytest
import yaml

from mad import ladder, sweep, training

LADDERS = sorted(file.stem for file in (sweep.ROOT / "conf/ladder").glob("*.yaml") if file.stem != "none")
MINE = {
    "name": "mine",
    "block": ["hyena", {"name": "swiglu", "width": 32}, "mh_attention|based", "swiglu"],
    "base_dim": 64,
    "rungs": [{"dim": 16, "depth": 1, "num_heads": 1}, {"dim": 32, "depth": 2, "num_heads": 2}],
}


def values(**changes):
    """A point's values."""
    point = {"task": {"name": "text", "seq_len": 32}, "arch": {"norm": "layer", "dim": 128, "stack": "mlp"}}
    point |= {"optim": {"lr": 1e-2, "min_lr": 1e-3, "clip": 1.0}, "ladder": MINE, "rung": 1}
    return point | changes


def test_a_rung_becomes_plain_values():
    got = ladder.resolve(values())
    block = [
        "hyena",
        {"name": "swiglu", "width": 32},
        {"parallel": [{"name": "mh_attention", "num_heads": 2}]},
        "swiglu",
    ]
    block[2]["parallel"].append(got["arch"]["stack"][2]["parallel"][1])
    assert got["arch"] == {"name": "mine", "stack": block * 2, "dim": 32, "norm": "layer"}
    assert got["optim"] == {"lr": 2e-2, "min_lr": 2e-3, "clip": 1.0}  # times 64 / 32
    assert training.prepare({key: got[key] for key in ("task", "arch", "optim")}).arch.name == "mine"


def test_without_a_ladder_nothing_changes():
    given = values(ladder={}, rung=None)
    assert ladder.resolve(given) == given


@pytest.mark.parametrize("name", LADDERS)
def test_ladders_climb(name):
    given = yaml.safe_load((sweep.ROOT / f"conf/ladder/{name}.yaml").read_text())
    assert given["name"] == name and len(given["rungs"]) == 14
    sizes = [(rung["dim"], rung["depth"]) for rung in given["rungs"]]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    for rung in range(8):
        got = ladder.resolve(values(ladder=given, rung=rung))
        training.prepare({key: got[key] for key in ("task", "arch", "optim")} | {"train": {"tokens": 1}})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rung": 2}, "ladder 'mine' has rung=0 to 1, got rung=2; the nearest is 1"),
        ({"rung": -1}, "got rung=-1; the nearest is 0"),
        ({"rung": None}, r"ladder 'mine' has rung=0 to 1; choose one or several, for instance 'rung=range\(0,2\)'"),
        ({"ladder": {}}, "rung=1 needs a ladder"),
        ({"ladder": MINE | {"blocks": []}}, "unknown key 'ladder.blocks' .did you mean 'ladder.block'"),
        ({"ladder": MINE | {"base_dim": "x"}}, "ladder 'mine': base_dim must be a number above 0, got 'x'"),
        ({"ladder": MINE | {"base_dim": -1}}, "base_dim must be a number above 0, got -1"),
        ({"ladder": MINE | {"rungs": {"dim": 8, "depth": 1}}}, "rungs must be a list of mappings"),
        ({"ladder": MINE | {"rungs": [8, 16]}}, "rungs must be a list of mappings"),
        ({"ladder": MINE | {"rungs": []}}, "ladder 'mine' lacks rungs"),
        ({"ladder": MINE | {"rungs": [{"dim": 8, "depth": 0}] * 2}}, "rung 1 of ladder 'mine': depth must be .* got 0"),
        ({"ladder": MINE | {"rungs": [{"dim": 8, "depth": 1, "heads": 1}] * 2}}, "no layer .* has the option 'heads'"),
    ],
)
def test_bad_ladders(changes, message):
    with pytest.raises(ValueError, match=message):
        ladder.resolve(values(**changes))
