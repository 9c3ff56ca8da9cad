"""Hydra sweeper: expand overrides into the points of a grid and hand all of them to one function.

Hydra's own multirun composes the whole configuration for every job, 0.1 s each. Here it is composed once for every
choice of config groups (task, arch, ...); the values are then set on copies. Grammar and errors stay Hydra's.
"""

import copy
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict

import layers
from mad.config import SECTIONS
from mad.leaderboard.command import literal
from mad.registry import unknown
from mad.sweepfile import OWN_STACK, entries
from mad.tasks import settings as protocol_settings

MOST_POINTS = 1_000_000  # beyond lies a slip of the keyboard, which would fill the memory
LENGTHS = ("train.steps", "train.tokens", "train.budget_flops")  # a run takes one of them
LADDERS = ("arch", "arch.stack", "arch.name", "arch.dim")  # what a ladder says
LISTS = ("arch.stack", "task.segments", "plugins")  # whose one value is a list
# options of a setting that are training's, not the task's
TRAINING = ("epochs", "eval_every", "num_train", "num_test", "batch_size")


@dataclass
class GridConf:
    """`params`: value axes, {"optim.lr": "1e-4,1e-3"} or {"optim.lr": [1e-4, 1e-3]}; the command line wins.
    `settings`: the task axis, a protocol's name or a list of {task: name, option: value, ...}. `archs`: the
    architectures' axis where they differ in what is varied, a list of {arch: name, key: values, ...} with keys of arch,
    as {arch: mqar_based, dim: "48,64"}."""

    _target_: str = "hydra_plugins.mad_grid.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    settings: Any = None
    archs: Any = None


ConfigStore.instance().store(group="hydra/sweeper", name="mad_grid", node=GridConf, provider="mad")


class GridSweeper(Sweeper):
    """Calls `task_function.run_points` with a function that gives the (config, overrides) pairs of the grid.

    The overrides are those of the command line, or `task_function.arguments` where the application kept them back.
    """

    def __init__(self, params: dict[str, Any] | None = None, settings: Any = None, archs: Any = None):
        self.params, self.settings, self.archs = dict(params or {}), settings, archs

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.loader: Any = hydra_context.config_loader
        self.config: Any = config
        self.task_function: Any = task_function
        # it reads every folder of the search path, which is one of Hydra's own overrides
        read = functools.partial(self.loader.get_group_options, overrides=list(config.hydra.overrides.hydra))
        self.options = functools.cache(read)

    def sweep(self, arguments: list[str]) -> Any:
        given = getattr(self.task_function, "arguments", None)
        return self.task_function.run_points(lambda: list(self.points(arguments if given is None else given)))

    def points(self, arguments: list[str]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Every point of the grid, and the overrides that lead to it.

        Raises:
            ValueError: a group choice or a key that does not exist.
        """
        axes = self.axes(arguments)
        tasks = self.task_axis(axes.pop("task", None))
        archs = [([], [])] if "ladder" in axes else self.arch_axis(axes.pop("arch", None))
        groups = {key: values for key, values in axes.items() if self.options(key.lstrip("+~"))}
        values = {key: axes[key] for key in axes if key not in groups}
        number = math.prod(map(len, (tasks, archs, *axes.values())))
        if number > MOST_POINTS:
            raise ValueError(f"the grid has {number:,} points; expected {MOST_POINTS:,} at most")
        parse = OverridesParser.create().parse_override
        parsed = {text: parse(text) for axis in values.values() for text in axis}
        composed: dict[tuple[str, ...], DictConfig] = {}  # 0.1 s each, and many settings share a task
        for (task, task_options), (arch, arch_options) in itertools.product(tasks, archs):
            options = [*task_options, *arch_options]
            setting = [parse(text) for text in options]
            for choice in itertools.product(*groups.values()):
                choices = (*task, *arch, *choice)
                if choices not in composed:
                    composed[choices] = self.compose(choices)
                config = copy.deepcopy(composed[choices])
                apply(setting, config)
                for point in itertools.product(*values.values()):
                    # every point sets the same keys, so they may share one configuration
                    apply([parsed[text] for text in point], config)
                    plain: Any = OmegaConf.to_container(config, resolve=True)
                    yield plain, [*task, *arch, *options, *choice, *point]

    def axes(self, arguments: list[str]) -> dict[str, list[str]]:
        """Key -> overrides, one a value. The command line takes the place of the sweep's axis of the same key."""
        given, params = self.parse(arguments), self.params
        if "ladder" in given:  # in place of the sweep's architectures, and the other way round
            params = {key: value for key, value in params.items() if key not in LADDERS}
        elif "arch" in given or "arch.stack" in given:
            replaced = ("arch", "arch.stack", "arch.name", "ladder", "rung")
            params = {key: value for key, value in params.items() if key not in replaced}
        said = [given[key][0] for key in LENGTHS if given.get(key, [f"{key}=null"]) != [f"{key}=null"]]
        if said and len(given.get("train.epochs", ())) > 1:
            raise ValueError(f"{said[0]} is the length of every run, an axis of train.epochs has no effect beside it")
        if any(key in given for key in (*LENGTHS, "train.epochs")):  # epochs count where none of the lengths is set
            given = {key: [f"{key}=null"] for key in LENGTHS} | given
        axes = self.parse([_axis(key, value) for key, value in params.items()]) | given
        for key, values in axes.items():
            if not values:
                raise ValueError(f"{key} is an axis without a value")
        mine = [key for key in LADDERS if key in axes]
        if mine and any(text != "ladder=none" for text in axes.get("ladder", [])):
            raise ValueError(
                f"{' and '.join(text for key in (mine[0], 'ladder') for text in axes[key][:1])} are given, but a "
                f"ladder says itself what {mine[0]} is; leave out one of them"
            )
        if "arch.stack" in axes:
            axes |= {key: [f"{key}={literal(value)}"] for key, value in OWN_STACK.items() if key not in axes}
        return axes

    def parse(self, texts: list[str]) -> dict[str, list[str]]:
        overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(texts)
        return {
            override.get_key_element(): [f"{override.get_key_element()}={value}" for value in _values(override)]
            for override in overrides
            if not override.is_hydra_override() and override.get_key_element() != "sweeps"
        }

    def task_axis(self, chosen: list[str] | None) -> list[tuple[list[str], list[str]]]:
        """(override of the group, overrides of its options, each of one value) for every setting of the sweep.

        `task=X` keeps the sweep's settings of X, or, where it has none, X with its defaults.
        """
        if isinstance(self.settings, str):
            settings = protocol_settings(self.settings)
        else:
            settings = entries("settings", "task", _plain(self.settings))
        return [
            ([f"task={name}"], [f"{'train' if key in TRAINING else 'task'}.{key}={literal(v)}" for key, v in o.items()])
            for name, o in _kept(settings, chosen)
        ] or [([], [])]

    def arch_axis(self, chosen: list[str] | None) -> list[tuple[list[str], list[str]]]:
        """(override of the group, overrides of its keys) for every architecture; of several values each is one.

        `arch=X` keeps the sweep's X with what it varies, or, where it has none, X as it is.
        """
        found = []
        for name, keys in _kept(entries("archs", "arch", _plain(self.archs)), chosen):
            axes = self.parse([_axis(f"arch.{key}", value) for key, value in keys.items()])
            found += [([f"arch={name}"], list(point)) for point in itertools.product(*axes.values())]
        return found or [([], [])]

    def compose(self, choices: tuple[str, ...]) -> DictConfig:
        for text in choices:
            group, _, name = text.partition("=")
            options = self.options(group)
            if name not in options:
                raise _unknown_choice(group, name, options)
        sweeps = [text for text in self.config.hydra.overrides.task if text.startswith("sweeps=")]
        config = self.loader.load_sweep_config(self.config, [*sweeps, *choices])
        with open_dict(config):
            del config["hydra"]
        return config


def apply(overrides: list[Override], config: DictConfig) -> None:
    """Set values on a config; a key that it does not have is an error naming the nearest."""
    for override in overrides:
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise ValueError(f"{override.input_line!r}: every key is there already, leave out the sign before it")
        node, path = config, override.key_or_group.split(".")
        for depth, key in enumerate(path):
            if isinstance(node, DictConfig) and len(node) == 0 and depth > 0:
                break  # a mapping that takes any key
            if isinstance(node, DictConfig) and key not in node:
                raise _unknown_key(override.key_or_group, ".".join(path[:depth]), map(str, node))
            node = node[key] if isinstance(node, DictConfig) else None
    with open_dict(config):  # for the keys of such mappings; all others are known to exist
        ConfigLoaderImpl._apply_overrides_to_config(overrides, config)


def _values(override: Override) -> list[str]:
    if override.is_interval_sweep():
        raise ValueError(f"{override.input_line}: an interval has no list of values; expected a,b, range() or choice()")
    if override.is_sweep_override():
        found = [str(value) for value in itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1)]
        if len(found) > MOST_POINTS:
            raise ValueError(f"{override.get_key_element()} has more than {MOST_POINTS:,} values")
        return found
    return [override.get_value_element_as_str()]


def _plain(given: Any) -> Any:
    return OmegaConf.to_container(given) if OmegaConf.is_config(given) else given


def _kept(entries: list[tuple[str, dict[str, Any]]], chosen: list[str] | None) -> list[tuple[str, dict[str, Any]]]:
    """The entries whose name is chosen, and what is chosen and no entry; all where nothing is."""
    if chosen is None:
        return entries
    names = [text.partition("=")[2] for text in chosen]
    mine = [*entries, *((name, {}) for name in names if name not in dict(entries))]
    return [(name, keys) for name, keys in mine if name in names]


def _unknown_key(key: str, prefix: str, known: Iterable[str]) -> ValueError:
    error = unknown("key", key, (f"{prefix}.{choice}".lstrip(".") for choice in known))
    option = key.removeprefix("task.")
    for section, kind in SECTIONS.items():
        if prefix == "task" and option in kind.__dataclass_fields__:
            error = ValueError(
                f"{error}; {option!r} is no option of a task but {section}.{option}, which a sweep's file has among "
                "hydra.sweeper.params"
            )
    return error


def _unknown_choice(group: str, name: str, options: list[str]) -> ValueError:
    error = unknown(group, name, options)
    if group == "arch" and name in layers.names():
        error = ValueError(f"{error}; {name!r} is a layer, which a stack is made of: arch.stack={name}-swiglu")
    return error


def _axis(key: str, value: Any) -> str:
    """A key's values in YAML as an override's text: a list is an axis, but where one value is a list already."""
    value = _plain(value)
    if not isinstance(value, (list, tuple)) or key in LISTS:
        return f"{key}={_text(value)}"
    return f"{key}={','.join(map(_text, value))}"


def _text(value: Any) -> str:
    """A YAML value as an override's text, in which strings are Hydra's grammar: `1e-4,1e-3` is an axis."""
    value = _plain(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_text, value)) + "]"
    return value if isinstance(value, str) else literal(value)
