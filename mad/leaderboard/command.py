"""The command that runs a record's run again: its configuration as overrides, quoted for Hydra and then for a shell.

All keys are given, also those that have their default values: the sweep that is the command's default has values of its
own. `device` is left out, since a run is the same run on another one.
"""

import re
import shlex
from typing import Any

PROGRAM = "python -m mad.sweep"
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # what Hydra reads as this text, without quotes
WORDS = {"null", "true", "false", "nan", "inf"}  # but not these, whatever their case

# The parts of a command, so that a page of thousands of runs can hold each different part once.
PARTS = ("task", "arch", "optim", "train", "seed")


def overrides(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Key -> value of a record's `config`, in the groups of PARTS.

    `arch.max_length` is among `train`, since it follows the task as the amount of data does, and so are the plugins.
    """
    arch, task = config["arch"], config["task"]
    given = {
        "task": {"task": task["name"]} | {f"task.{key}": value for key, value in task.items() if key != "name"},
        "arch": {f"arch.{key}": value for key, value in arch.items() if key != "max_length"},
        "optim": {f"optim.{key}": value for key, value in config["optim"].items()},
        "train": {f"train.{key}": value for key, value in config["train"].items()},
        "seed": {"seed": config["seed"]},
    }
    given["train"]["arch.max_length"] = arch.get("max_length")
    if config.get("plugins"):
        given["train"]["plugins"] = config["plugins"]
    return given


def quoted(given: dict[str, Any]) -> str:
    """A group of overrides as it is typed."""
    return shlex.join(f"{key}={literal(value)}" for key, value in given.items())


def command(config: dict[str, Any]) -> str:
    """For instance `python -m mad.sweep task=mqar task.vocab_size=128 ... 'arch.stack=[hyena,swiglu]' ... seed=0`."""
    return " ".join([PROGRAM, *map(quoted, overrides(config).values())])


def literal(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{literal(key)}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(literal, value)) + "]"
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # not an interpolation
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"
