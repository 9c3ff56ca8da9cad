"""The synthetic tasks, one file each, found by their registration.

    tasks.names()                                                   # what there is
    t = tasks.build("mqar", vocab_size=8192, seq_len=64, num_kv=4)
    t.sample(128, seed=0, split="test")                             # Examples(inputs, targets), int64 (128, 64)
    tasks.settings("mad")                                           # the 66 settings of the MAD protocol

To add one, put a file here (or name it as a plugin) with a `Task` under `@tasks.register("name")`:

    @tasks.register("parity")
    class Parity(tasks.Task):
        def __init__(self, *, vocab_size: int = 2, seq_len: int = 64):  # options, after the *, each with a default
            super().__init__(vocab_size=vocab_size, seq_len=seq_len)    # and kept as an attribute of its name

        def generate(self, rng, num, train):  # all randomness from rng: a NumPy Generator
            inputs = rng.integers(0, 2, (num, self.seq_len))
            return inputs, inputs.cumsum(axis=1) % 2  # ids below vocab_size; tasks.IGNORE where nothing is asked
"""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from mad.registry import Registry
from mad.tasks.base import IGNORE, SPLITS, Examples, Task
from mad.tasks.settings import settings

__all__ = ["IGNORE", "SPLITS", "Examples", "Task", "build", "names", "options", "register", "settings"]

T = TypeVar("T", bound=type[Task])

NAME = r"(?!(?i:null|true|false|nan|inf)$)[^\W\d]\w*(-\w+)*"  # a word to Hydra, too

registry = Registry("task")
names = registry.names
options = registry.options  # options("compression") -> {"vocab_size": 16, "seq_len": 32}


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a `Task` buildable as `name`.

    Raises:
        ValueError: it is no Task, or its options are not keyword-only arguments with defaults.
    """

    def decorate(cls: T) -> T:
        _check_class(name, cls)
        registry.register(name)(cls)
        cls.name = name
        return cls

    return decorate


def build(name: str, **options: Any) -> Task:
    """Build a task; options that are left out are those of the protocol's baseline.

    Raises:
        ValueError: the name, an option or a value does not exist or does not fit; the message says what does.
    """
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}
    try:
        task = registry.build(name, **plain)
        _check_kept(task, registry.options(name) | plain)
        return task
    except ValueError as error:
        if repr(name) in str(error):
            raise
        raise ValueError(f"task {name!r}: {error}") from error


def _check_class(name: str, cls: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"a task's name is a word of letters, digits, _ and -, begun by a letter, got {name!r}")
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ValueError(f"task {name!r}: expected a class derived from tasks.Task, got {cls!r}")
    for option in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            lacks = "has no default" if option.kind is option.KEYWORD_ONLY else "is not keyword-only"
            raise ValueError(
                f"task {name!r}: option {option.name!r} of {cls.__name__}.__init__ {lacks}; expected "
                "def __init__(self, *, vocab_size=16, seq_len=128), as options are set by name and each can be left out"
            )
        if option.name == "name":
            raise ValueError(f"task {name!r}: an option cannot be called 'name', which is the task's own")


def _check_kept(task: Task, given: dict[str, Any]) -> None:
    """The options of a task are what a record says of it, and what its examples are drawn by: built of them it is the
    same task."""
    for option in registry.options(task.name):
        if not hasattr(task, option):
            raise ValueError(
                f"task {task.name!r} must keep its option as self.{option}, which its __init__ does not set"
            )
        try:
            json.dumps(getattr(task, option))
        except TypeError:
            raise ValueError(
                f"task {task.name!r} must keep its option {option!r} as a plain value, that is numbers, text, or lists "
                f"of them; self.{option} is {type(getattr(task, option)).__name__}"
            ) from None
    if task.options == given:
        return
    again = registry.build(task.name, **task.options).options
    for option, value in task.options.items():
        if again[option] != value:
            raise ValueError(
                f"task {task.name!r} must keep its option {option!r} as it was given: {given[option]!r} became "
                f"{value!r}, and built of that it is {again[option]!r}; keep what is made of it under another name"
            )


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
