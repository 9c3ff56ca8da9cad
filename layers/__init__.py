"""The primitives: sequence mixers and channel mixers, one file each, found by their registration.

    layers.names(kind="sequence")                     # what there is
    layers.build("hyena", dim=128, max_length=128)    # one layer
    layers.build({"name": "moe", "top_k": 1}, 128, 128)

To add one, put a file here (or name it as a plugin) with a class under `@layers.register("name", kind=...)`.
"""

import importlib
import inspect
import pathlib
import pkgutil
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from layers.base import ChannelMixer, Layer
from mad.memory import enough_for
from mad.registry import Registry, unknown

__all__ = ["ChannelMixer", "Layer", "build", "names", "options", "register", "resolve"]

KINDS = ("sequence", "channel")
registry = Registry("layer")
options = registry.options  # options("hyena") -> {"expansion": 4, ...}
resolve = registry.resolve  # resolve({"name": "hyena", "filter_order": 64}) -> ("hyena", {"filter_order": 64})


def register(name: str, *, kind: str) -> Callable[[type], Any]:
    """Class decorator: make a `Layer` buildable as `name`; `kind` is "sequence" or "channel".

    Raises:
        ValueError: another kind, a name that a stack could not be written with, no Layer, or options not by keyword.
    """
    if kind not in KINDS:
        raise ValueError(f"kind of layer {name!r} must be 'sequence' or 'channel', got {kind!r}")
    if not re.fullmatch(r"\w+", name):  # the notation of stacks has its own use for -, | and *
        raise ValueError(f"a layer's name has letters, digits and _ alone, got {name!r}")

    def decorate(cls: type) -> Any:
        _check_class(name, cls)
        return registry.register(name, kind=kind)(cls)

    return decorate


def _check_class(name: str, cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Layer)):
        raise ValueError(f"layer {name!r}: expected a class derived from layers.Layer, got {cls!r}")
    for option in list(inspect.signature(cls.__init__).parameters.values())[3:]:
        if option.kind is option.POSITIONAL_OR_KEYWORD:
            raise ValueError(
                f"layer {name!r}: option {option.name!r} of {cls.__name__}.__init__ is not keyword-only; expected "
                "def __init__(self, dim, max_length, *, width=64), as options are set by name"
            )


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
