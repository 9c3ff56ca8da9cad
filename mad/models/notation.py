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

from collections.abc import Mapping, Sequence
from typing import Any

MOST_LAYERS = 1_000  # of a stack: beyond lies a slip of the keyboard, which would fill the memory

Spec = str | dict[str, Any]


def expand(stack: Any) -> list[Spec]:
    """The flat list of specs, each a name, a mapping with `name`, or a mapping with `parallel` (a list of those two).

    Raises:
        ValueError: an entry that is none of the above, or an empty stack; the message begins with where it stands, for
            instance stack[2].parallel[0].
    """
    return _expand(stack, "stack")


def _expand(stack: Any, where: str) -> list[Spec]:
    alone = isinstance(stack, (str, Mapping))
    entries = [stack] if alone else stack
    if not isinstance(entries, Sequence):  # OmegaConf's lists are no others
        raise ValueError(f"{where}: a stack is a list of layers or one string such as 'hyena-swiglu*2', got {stack!r}")
    specs = [spec for i, e in enumerate(entries) for spec in _entry(e, where if alone else f"{where}[{i}]")]
    if not specs:
        raise ValueError(
            f"{where}: the stack is empty; name at least one layer, for instance arch.stack=hyena-swiglu*2"
        )
    return specs


def compact(stack: Any) -> str:
    """A stack as one string, repeats folded: ["hyena", "swiglu", "hyena", "swiglu"] -> "hyena-swiglu*2"."""
    names = [_text(spec) for spec in expand(stack)]
    for period in range(1, len(names) + 1):
        times, rest = divmod(len(names), period)
        if not rest and names == names[:period] * times:
            return "-".join(names[:period]) + (f"*{times}" if times > 1 else "")
    raise AssertionError("a list is one repeat of itself")


def _entry(entry: Any, where: str) -> list[Spec]:
    if isinstance(entry, str):
        pattern, star, times = entry.partition("*")
        names = pattern.split("-")
        if not all(name.strip() for item in names for name in item.split("|")):
            raise ValueError(f"{where}: {entry!r} has an empty name; expected for instance 'hyena-swiglu*2'")
        return _repeat([_term(name.strip()) for name in names], times if star else 1, entry, where)
    if isinstance(entry, Mapping):
        for key, allowed in (("repeat", {"repeat", "layers"}), ("parallel", {"parallel"})):
            if key in entry and set(entry) != allowed:
                raise ValueError(f"{where}: {dict(entry)!r} must have just the keys {', '.join(sorted(allowed))}")
        if "repeat" in entry:
            return _repeat(_expand(entry["layers"], f"{where}.layers"), entry["repeat"], entry, where)
        if "parallel" in entry:
            return [{"parallel": _branches(entry["parallel"], f"{where}.parallel")}]
        if "name" in entry:
            if not isinstance(entry["name"], str):
                raise ValueError(f"{where}: 'name' is the name of one layer, a string, got {entry['name']!r}")
            return [dict(entry) if len(entry) > 1 else entry["name"]]
    raise ValueError(f"{where}: an entry is a name or a mapping with 'name', 'repeat' or 'parallel', got {entry!r}")


def _term(text: str) -> Spec:
    names = [name.strip() for name in text.split("|")]
    return names[0] if len(names) == 1 else {"parallel": names}


def _branches(given: Any, where: str) -> list[Spec]:
    branches = given.split("|") if isinstance(given, str) else [given] if isinstance(given, Mapping) else given
    if not isinstance(branches, Sequence) or not branches:
        raise ValueError(f"{where}: 'parallel' is a list of layers, at least one, got {given!r}")
    found = []
    for i, branch in enumerate(branches):
        specs = _entry(branch, f"{where}[{i}]")
        if len(specs) != 1 or (isinstance(specs[0], dict) and "parallel" in specs[0]):
            raise ValueError(f"{where}[{i}]: a branch of 'parallel' is one layer, got {branch!r}")
        found += specs
    return found


def _repeat(specs: list[Spec], times: Any, entry: Any, where: str) -> list[Spec]:
    if not str(times).strip().isdecimal() or int(times) < 1:
        raise ValueError(f"{where}: the repeat of {entry!r} must be a whole number of at least 1, got {times!r}")
    if len(specs) * int(times) > MOST_LAYERS:
        raise ValueError(f"{where}: {entry!r} is {len(specs) * int(times)} layers; expected {MOST_LAYERS} at most")
    return specs * int(times)


def _text(spec: Spec) -> str:
    if isinstance(spec, str):
        return spec
    if "parallel" in spec:
        return "|".join(_text(branch) for branch in spec["parallel"])
    options = ",".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}({options})" if options else spec["name"]
