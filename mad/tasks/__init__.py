"""The synthetic tasks, one file each, found by their registration.

    tasks.names()                                                   # what there is
    t = tasks.build("mqar", vocab_size=8192, seq_len=64, num_kv=4)
    t.sample(128, seed=0, split="test")                             # Examples(inputs, targets), int64 (128, 64)
    tasks.settings("mad")                                           # the 66 settings of the MAD protocol

To add one, put a file here (or name it as a plugin) with a `Task` under `@tasks.register("name")`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from mad.registry import Registry
from mad.tasks.base import IGNORE, SPLITS, Examples, Task
from mad.tasks.settings import settings

__all__ = ["IGNORE", "SPLITS", "Examples", "Task", "build", "names", "options", "register", "settings"]

T = TypeVar("T", bound=type[Task])

registry = Registry("task")
names = registry.names
options = registry.options  # options("compression") -> {"vocab_size": 16, "seq_len": 32}


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a `Task` buildable as `name`."""

    def decorate(cls: T) -> T:
        registry.register(name)(cls)
        cls.name = name
        return cls

    return decorate


def build(name: str, **options: Any) -> Task:
    """Build a task; options that are left out are those of the protocol's baseline.

    Raises:
        ValueError: the name, an option or a value does not exist or does not fit; the message says what does.
    """
    try:
        return registry.build(name, **options)
    except ValueError as error:
        if repr(name) in str(error):
            raise
        raise ValueError(f"task {name!r}: {error}") from error


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
