"""One registry for everything a user names: layers, feature maps, tasks, engines, trackers.

A class is registered under a name; its options are the keyword arguments of its `__init__` with their defaults, so
there is no second list to keep. A name or an option that does not exist is an error that says what was asked for,
what there is, and which choice is nearest.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar


def nearest(name: Any, choices: Iterable[str]) -> str:
    """' (did you mean 'hyena'?)' for 'hyenna', or '' where nothing comes close."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(noun: str, name: Any, choices: Iterable[str]) -> ValueError:
    """The error for a name that does not exist: the offender, the nearest choice, and all choices."""
    choices = sorted(choices)
    return ValueError(
        f"unknown {noun} {name!r}{nearest(name, choices)}; expected one of: {', '.join(choices) or 'none'}"
    )


def check_switch(name: str, value: Any) -> None:
    """Raise for what is neither True nor False: "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none, though Python counts with them."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


class Registry:
    """Names -> classes, with tags to select by (`kind="sequence"`)."""

    all: ClassVar[list["Registry"]] = []

    def __init__(self, noun: str):
        self.all.append(self)
        self.noun = noun
        self._classes: dict[str, type] = {}
        self._tags: dict[str, dict[str, Any]] = {}

    def register(self, name: str, **tags: Any) -> Callable[[type], type]:
        """Class decorator. The same class may be registered again (a module imported twice), another one may not."""

        def decorate(cls: type) -> type:
            known = self._classes.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"{self.noun} {name!r} is already registered by {known.__module__}.{known.__qualname__}; "
                    f"give {cls.__module__}.{cls.__qualname__} another name"
                )
            self._classes[name], self._tags[name] = cls, tags
            return cls

        return decorate

    def forget(self, module: str) -> None:
        """Leave out the classes of a module, which is to be run anew."""
        for name in [name for name, cls in self._classes.items() if cls.__module__ == module]:
            del self._classes[name], self._tags[name]

    def names(self, **tags: Any) -> list[str]:
        """Sorted names whose tags equal those given; a tag that is None selects nothing away."""
        wanted = {key: value for key, value in tags.items() if value is not None}
        return sorted(n for n, have in self._tags.items() if all(have.get(k) == v for k, v in wanted.items()))

    def get(self, name: Any) -> type:
        if not isinstance(name, str) or name not in self._classes:
            raise unknown(self.noun, name, self._classes)
        return self._classes[name]

    def tags(self, name: str) -> dict[str, Any]:
        self.get(name)
        return self._tags[name]

    def options(self, name: str) -> dict[str, Any]:
        """The options of `name` and their defaults: the keyword-only arguments of its `__init__`."""
        parameters = inspect.signature(self.get(name).__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def resolve(self, spec: Any) -> tuple[str, dict[str, Any]]:
        """A spec, a name or a mapping of `name` and options, as (name, options).

        Raises:
            ValueError: it is neither.
        """
        if isinstance(spec, str):
            return spec, {}
        if not isinstance(spec, Mapping) or "name" not in spec:
            known = ", ".join(self.names())
            raise ValueError(
                f"a {self.noun} is a name or a mapping with the key 'name', got {spec!r}; expected one of: {known}"
            )
        if not isinstance(spec["name"], str):
            raise ValueError(f"the name of a {self.noun} is a string, got {spec['name']!r}")
        return spec["name"], {key: value for key, value in spec.items() if key != "name"}

    def build(self, name: Any, /, *args: Any, **options: Any) -> Any:
        """Build `name` with positional `args` and keyword `options`.

        Raises:
            ValueError: the name or an option is unknown, a switch is neither on nor off, or the class refuses a value.
        """
        cls, known = self.get(name), self.options(name)
        for option, value in options.items():
            if option not in known:
                raise unknown(f"option of {self.noun} {name!r}:", option, known)
            if isinstance(known[option], bool):
                check_switch(f"{self.noun} {name!r}: {option}", value)
        return cls(*args, **options)
