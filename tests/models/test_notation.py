"""The notation of stacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mad.models import compact, expand

NAMES = st.sampled_from(["hyena", "swiglu", "mh_attention", "moe"])


def test_examples():
    assert expand("hyena-swiglu*2") == ["hyena", "swiglu", "hyena", "swiglu"]
    assert expand(["hyena-swiglu*2", "attention"]) == ["hyena", "swiglu", "hyena", "swiglu", "attention"]
    assert expand(["attention|hyena"]) == [{"parallel": ["attention", "hyena"]}]
    assert expand("attention|hyena-mlp*2") == [{"parallel": ["attention", "hyena"]}, "mlp"] * 2
    assert expand([{"repeat": 2, "layers": [{"name": "moe", "top_k": 1}]}]) == [{"name": "moe", "top_k": 1}] * 2
    assert expand({"parallel": ["attention", {"name": "hyena", "filter": "rtf"}]}) == [
        {"parallel": ["attention", {"name": "hyena", "filter": "rtf"}]}
    ]
    assert expand([{"repeat": 2, "layers": "hyena-swiglu"}]) == ["hyena", "swiglu"] * 2
    assert expand([{"repeat": 2, "layers": {"name": "moe", "top_k": 1}}]) == [{"name": "moe", "top_k": 1}] * 2
    assert expand({"parallel": "attention|hyena"}) == expand("attention|hyena")
    assert expand(OmegaConf.create(["mlp", {"parallel": ["moe", "mlp"]}])) == ["mlp", *expand("moe|mlp")]
    assert compact(["hyena", "swiglu"] * 2) == "hyena-swiglu*2"
    assert compact([{"name": "moe", "top_k": 1}, "mlp"]) == "moe(top_k=1)-mlp"


@given(st.lists(NAMES, min_size=1, max_size=8))
def test_compact_reads_back(stack):
    assert expand(compact(stack)) == stack


@given(st.lists(NAMES, min_size=1, max_size=3), st.integers(1, 4))
def test_compact_folds_repeats(pattern, times):
    assert len(compact(pattern * times)) <= len(compact(pattern)) + 2


@pytest.mark.parametrize(
    "bad, message",
    [
        ([], "the stack is empty"),
        (3, "a stack is a list of layers"),
        ("hyena--swiglu", "empty name"),
        ("hyena*0", "at least 1, got '0'"),
        ("hyena*two", "at least 1, got 'two'"),
        ("hyena*\u00b2", "at least 1, got '\u00b2'"),
        ("mlp-hyena*99999999999", r"^stack: 'mlp-hyena\*99999999999' is 199999999998 layers; expected 1000 at most$"),
        ([{"repeat": 501, "layers": "mlp-hyena"}], r"^stack\[0\]: .* is 1002 layers"),
        ([{"layer": "hyena"}], "'name', 'repeat' or 'parallel'"),
        ([{"repeat": 2}], "must have just the keys layers, repeat"),
        ([{"repeat": 2, "layers": 3}], "a stack is a list of layers"),
        ({"name": ["hyena"]}, r"^stack: 'name' is the name of one layer, a string, got \['hyena'\]$"),
        (["mlp", {"name": ["hyena"], "filter_order": 2}], r"^stack\[1\]: 'name' is the name of one layer"),
        ([{"name": None}], r"^stack\[0\]: 'name' is .* got None$"),
        ({"parallel": ["mlp", {"name": {"name": "hyena"}}]}, r"^stack\.parallel\[1\]: 'name' is the name of one"),
        (["mlp", "hyena*0"], r"^stack\[1\]: the repeat of 'hyena\*0' must be a whole number"),
        (["mlp", {"repeat": -1, "layers": "hyena"}], r"^stack\[1\]: the repeat of .*, got -1$"),
        (["mlp", {"repeat": 2, "layers": ["mlp", "a*x"]}], r"^stack\[1\]\.layers\[1\]: the repeat of 'a\*x' must"),
        (["mlp", {"repeat": 2, "layers": []}], r"^stack\[1\]\.layers: the stack is empty"),
        (["mlp", "mlp", {"parallel": ["mlp", 7]}], r"^stack\[2\]\.parallel\[1\]: an entry is a name .* got 7$"),
        (["mlp", {"parallel": {}}], r"^stack\[1\]\.parallel\[0\]: an entry is a name"),
        (["mlp", {"parallel": "mlp|hyena-mlp"}], r"^stack\[1\]\.parallel\[1\]: a branch .* got 'hyena-mlp'$"),
        ([{"parallel": ["hyena-swiglu"]}], "a branch of 'parallel' is one layer"),
        ([{"parallel": []}], "'parallel' is a list of layers, at least one, got \\[\\]"),
        ([{"parallel": 5}], "'parallel' is a list of layers, at least one, got 5"),
    ],
)
def test_bad_stacks(bad, message):
    with pytest.raises(ValueError, match=message):
        expand(bad)
