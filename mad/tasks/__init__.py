"""The tasks: synthetic data that isolates a skill, one file each, found by their registration.

    t = tasks.build("mqar", vocab_size=8192, seq_len=64, num_kv=4)
    examples = t.sample(1000, seed=0, split="train")        # inputs, targets: int64 (1000, 64)

To add one, put a file here (or name it as a plugin) with a subclass of `tasks.Task` under `@tasks.register("name")`.
What each task is, and where published code departs from the text: the docstring of its file.
"""

import importlib
import pkgutil
from typing import Any

from mad.tasks.base import IGNORE, SPLITS, Examples, Task, registry
from mad.tasks.settings import settings

__all__ = ["IGNORE", "SPLITS", "Examples", "Task", "build", "names", "options", "register", "settings"]

register = registry.register
names = registry.names
options = registry.options  # options("mqar") -> {"vocab_size": 8192, ...}


def build(name: str, **given: Any) -> Task:
    """Build a task.

    Raises:
        ValueError: the name or an option does not exist, or the values do not fit together; the message says what does.
    """
    task = registry.build(name, **given)
    task.name = name
    return task


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"mad.tasks.{_module.name}")
