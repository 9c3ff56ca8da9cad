"""The primitives: sequence mixers and channel mixers, one file each, found by their registration.

    layers.names(kind="sequence")                     # what there is
    layers.build("hyena", dim=128, max_length=128)    # one layer
    layers.build({"name": "moe", "top_k": 1}, 128, 128)

To add one, put a file here (or name it as a plugin) with a class under `@layers.register("name", kind=...)`.
"""

import importlib
import pathlib
import pkgutil
import traceback
from collections.abc import Mapping
from typing import Any

from layers.base import ChannelMixer, Layer
from mad.memory import enough_for
from mad.registry import Registry, unknown

__all__ = ["ChannelMixer", "Layer", "build", "names", "options", "register", "resolve"]

KINDS = ("sequence", "channel")
registry = Registry("layer")
options = registry.options  # options("hyena") -> {"filter_order": 4, ...}
resolve = registry.resolve  # resolve({"name": "hyena", "filter_order": 64}) -> ("hyena", {"filter_order": 64})


def register(name: str, *, kind: str):
    """Class decorator: make a `Layer` buildable as `name`; `kind` is "sequence" or "channel"."""
    if kind not in KINDS:
        raise ValueError(f"kind of layer {name!r} must be 'sequence' or 'channel', got {kind!r}")
    return registry.register(name, kind=kind)


def names(kind: str | None = None) -> list[str]:
    """Names of the registered layers; `kind` is "sequence", "channel" or None for both.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in (None, *KINDS):
        raise unknown("kind of layer", kind, KINDS)
    return registry.names(kind=kind)


def build(spec: str | Mapping[str, Any], dim: int, max_length: int) -> Layer:
    """Build one layer.

    Args:
        spec: a name, or a mapping of `name` and options.
        dim: width of its input and output.
        max_length: the longest sequence it will see.

    Raises:
        ValueError: the name, an option or a value does not exist or does not fit, or memory does not hold the layer;
            the message says what does.
    """
    name, given = resolve(spec)
    sizes = {"dim": dim, "max_length": max_length} | given
    try:
        with enough_for(", ".join(f"{key}={value}" for key, value in sizes.items())):
            return registry.build(name, dim, max_length, **given)
    except (ValueError, TypeError) as error:
        if name in names() and repr(name) not in str(error):
            raise ValueError(f"layer {name!r}: {error}") from error
        raise
    except Exception as error:
        cls: Any = registry.get(name)
        if cls.__module__.startswith("layers."):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == cls.__init__.__code__.co_filename]
        place = (own or frames)[-1]
        where = f"{pathlib.Path(place.filename).name}, line {place.lineno}"
        raise ValueError(f"layer {name!r}: {type(error).__name__}: {error} ({where})") from error


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"layers.{_module.name}")
