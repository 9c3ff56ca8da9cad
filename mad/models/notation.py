"""The notation of stacks, in YAML and on the command line.

A stack is a list of entries, or one entry:

    hyena                                 a layer
    {name: moe, top_k: 1}                 a layer with options
    hyena-swiglu                          one after the other
    hyena-swiglu*3                        ... three times over
    attention|hyena                       side by side on the same input, summed
    {parallel: [attention, {name: hyena, filter: rtf}]}      the same, with options
    {repeat: 3, layers: [hyena, {name: moe, top_k: 1}]}      the same, with options

so a striped hybrid is `hyena-swiglu*3, attention-swiglu`. `-` binds less than `|` and more than `*`.
"""

from collections.abc import Mapping
from typing import Any

Spec = str | dict[str, Any]


def expand(stack: Any) -> list[Spec]:
    """The flat list of specs, each a name, a mapping with `name`, or a mapping with `parallel` (a list of those two).

    Raises:
        ValueError: an entry that is none of the above, or an empty stack.
    """
    entries = [stack] if isinstance(stack, (str, Mapping)) else stack
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"a stack is a list of layers or one string such as 'hyena-swiglu*2', got {stack!r}")
    specs = [spec for entry in entries for spec in _entry(entry)]
    if not specs:
        raise ValueError("the stack is empty; name at least one layer, for instance arch.stack=hyena-swiglu*2")
    return specs


def compact(stack: Any) -> str:
    """A stack as one string, repeats folded: ["hyena", "swiglu", "hyena", "swiglu"] -> "hyena-swiglu*2"."""
    names = [_text(spec) for spec in expand(stack)]
    for period in range(1, len(names) + 1):
        times, rest = divmod(len(names), period)
        if not rest and names == names[:period] * times:
            return "-".join(names[:period]) + (f"*{times}" if times > 1 else "")
    raise AssertionError("a list is one repeat of itself")


def _entry(entry: Any) -> list[Spec]:
    if isinstance(entry, str):
        pattern, star, times = entry.partition("*")
        names = pattern.split("-")
        if not all(name.strip() for item in names for name in item.split("|")):
            raise ValueError(f"stack entry {entry!r} has an empty name; expected for instance 'hyena-swiglu*2'")
        return [_term(name.strip()) for name in names] * (_count(times, entry) if star else 1)
    if isinstance(entry, Mapping):
        for key, allowed in (("repeat", {"repeat", "layers"}), ("parallel", {"parallel"})):
            if key in entry and set(entry) != allowed:
                raise ValueError(f"stack entry {dict(entry)!r} must have just the keys {', '.join(sorted(allowed))}")
        if "repeat" in entry:
            return expand(entry["layers"]) * _count(entry["repeat"], entry)
        if "parallel" in entry:
            given = entry["parallel"]
            given = given.split("|") if isinstance(given, str) else [given] if isinstance(given, Mapping) else given
            if not isinstance(given, (list, tuple)) or not given:
                raise ValueError(f"'parallel' is a list of layers, at least one, got {entry['parallel']!r}")
            return [{"parallel": [_branch(branch) for branch in given]}]
        if "name" in entry:
            return [dict(entry) if len(entry) > 1 else entry["name"]]
    raise ValueError(f"a stack entry is a name or a mapping with 'name', 'repeat' or 'parallel', got {entry!r}")


def _term(text: str) -> Spec:
    names = [name.strip() for name in text.split("|")]
    return names[0] if len(names) == 1 else {"parallel": names}


def _branch(branch: Any) -> Spec:
    specs = _entry(branch)
    if len(specs) != 1 or (isinstance(specs[0], dict) and "parallel" in specs[0]):
        raise ValueError(f"a branch of 'parallel' is one layer, got {branch!r}")
    return specs[0]


def _count(times: Any, entry: Any) -> int:
    if not str(times).strip().isdigit() or int(times) < 1:
        raise ValueError(f"the repeat in stack entry {entry!r} must be a whole number of at least 1, got {times!r}")
    return int(times)


def _text(spec: Spec) -> str:
    if isinstance(spec, str):
        return spec
    if "parallel" in spec:
        return "|".join(_text(branch) for branch in spec["parallel"])
    options = ",".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}({options})" if options else spec["name"]
