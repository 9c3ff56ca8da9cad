"""The notation of stacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ([{"layer": "hyena"}], "'name', 'repeat' or 'parallel'"),
        ([{"repeat": 2}], "must have just the keys layers, repeat"),
        ([{"repeat": 2, "layers": 3}], "a stack is a list of layers"),
        ([{"parallel": ["hyena-swiglu"]}], "a branch of 'parallel' is one layer"),
        ([{"parallel": []}], "'parallel' is a list of layers, at least one, got \\[\\]"),
        ([{"parallel": 5}], "'parallel' is a list of layers, at least one, got 5"),
    ],
)
def test_bad_stacks(bad, message):
    with pytest.raises(ValueError, match=message):
        expand(bad)
