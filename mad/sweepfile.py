"""What a sweep is given: the keys of its command line, and its file, sweeps/NAME.yaml, read before Hydra reads it.

Hydra takes any key of a file, and its errors name neither file nor choice; what plugins register must be there before
it looks a task up.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mad import ROOT, config
from mad.registry import unknown


@dataclass
class SweepConfig(config.Run):
    """The schema of the command line: a run's keys, and where and how the sweep goes."""

    name: str = "sweep"
    results_dir: str = "results/${name}"  # this sweep's own folder
    engine: dict[str, Any] = field(default_factory=dict)
    tracker: str = "wandb"
    ladder: dict[str, Any] = field(default_factory=dict)  # with a rung of it, in place of arch: see mad.ladder
    rung: int | None = None


GROUPS = ("task", "arch", "ladder", "protocol", "engine", "sweeps")  # whose choices are files, or tasks

# what a file of sweeps/ may hold: its sections, each a mapping, and their keys (None: any)
SECTIONS: dict[str, tuple[str, ...] | None] = {
    "": (*SweepConfig.__dataclass_fields__, "defaults", "hydra"),
    **{section: tuple(kind.__dataclass_fields__) for section, kind in config.SECTIONS.items()},
    **dict.fromkeys(("task", "engine", "ladder", "hydra")),
    "hydra.sweeper": ("_target_", "params", "settings", "archs"),
    "hydra.sweeper.params": None,
}

# A stack of one's own is no shipped architecture's, and is not called after one: what follows where it is not given.
OWN_STACK = {"arch": "custom", "arch.name": None}


def search_path() -> list[Path]:
    """Where configuration is looked for besides conf/: the shipped sweeps, and the user's own in this folder."""
    here = Path.cwd()
    own = [folder for folder in (here, here / "conf") if here != ROOT and folder.is_dir()]
    return [ROOT, *own]


def choices() -> str:
    """For --help, the choices that Hydra does not list by itself: the sweeps, and what lies in this folder."""
    lines = [f"sweeps: {', '.join(sorted(_files()))}"]
    for group in GROUPS[:-1]:
        own = {file.stem for folder in search_path()[1:] for file in (folder / group).glob("*.yaml")}
        lines += [f"{group} of this folder: {', '.join(sorted(own))}"] if own else []
    return "\n".join(lines)


def read(arguments: Iterable[str]) -> dict[Path, dict[str, Any]]:
    """The file of `sweeps=NAME` and those of sweeps/ that it builds on, the one that counts most at the end.

    Raises:
        ValueError: there is no such sweep, or a file holds what it may not; the message names the file and the key.
    """
    known, found = _files(), {}
    for key, _, name in (argument.partition("=") for argument in arguments):
        if key == "sweeps" and name not in known:
            raise unknown("sweep", name, known)
        if key == "sweeps":
            _read(name, known, found)
    return found


def entries(key: str, group: str, given: Any) -> list[tuple[str, dict[str, Any]]]:
    """(name, the other keys) of each entry of an axis that a sweep lists.

    Raises:
        ValueError: it is no list of mappings that say their name.
    """
    wanted = f"expected a list of mappings, as [{{{group}: name, option: value}}]"
    if given is None:
        return []
    if not isinstance(given, list):
        raise ValueError(f"hydra.sweeper.{key}: {wanted}, got {given!r}")
    for entry in given:
        if not isinstance(entry, dict):
            raise ValueError(f"hydra.sweeper.{key}: {wanted}, got the entry {entry!r}")
        if not isinstance(entry.get(group), str):
            raise ValueError(f"hydra.sweeper.{key}: every entry names its {group}, as {{{group}: name}}, got {entry!r}")
    return [(entry[group], {option: value for option, value in entry.items() if option != group}) for entry in given]


def check_shadowed(arguments: list[str]) -> None:
    """Of two files for one choice the shipped one is read: nobody's own may be passed over in silence."""
    given = arguments if any(text.startswith("sweeps=") for text in arguments) else [*arguments, "sweeps=quickstart"]
    for group, _, value in (text.partition("=") for text in given):
        for name in re.findall(r"[\w.-]+", value):
            path = Path(group.lstrip("+~"), f"{name}.yaml")
            shipped = [file for file in (ROOT / "conf" / path, ROOT / path) if file.is_file()]
            own = [folder / path for folder in search_path()[1:] if (folder / path).is_file()]
            if shipped and own and own[0].read_bytes() != shipped[0].read_bytes():
                raise ValueError(
                    f"{group}={name} is a choice that comes with mad, {own[0]} would not be read; give it another name"
                )


def _files() -> dict[str, Path]:
    return {file.stem: file for folder in search_path()[::-1] for file in (folder / "sweeps").glob("*.yaml")}


def _read(name: str, known: dict[str, Path], found: dict[Path, dict[str, Any]], within: tuple[str, ...] = ()) -> None:
    """Put a file of sweeps/ and those that its defaults name into `found`, in the order in which Hydra merges them."""
    file = known[name]
    if name in within:
        raise ValueError(f"{file}: its defaults lead back to itself: {' -> '.join((*within, name))}")
    if file in found:
        return
    try:
        given: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from None
    text = file.read_text(encoding="utf-8")
    if text.startswith("\ufeff"):
        raise ValueError(f"{file} begins with a byte-order mark, behind which Hydra finds no package; save it without")
    if not re.search(r"^#\s*@package\s+_global_\s*$", text, re.MULTILINE):
        raise ValueError(f"{file} needs '# @package _global_' as its first line: its keys are a sweep's")
    try:
        _check(given)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    found[file] = given
    defaults = given.get("defaults", [])
    try:
        _check_defaults(defaults, known)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for other in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if other == "_self_":
            found[file] = found.pop(file)
        elif isinstance(other, str) and other in known:
            _read(other, known, found, (*within, name))


def _check_defaults(given: list[Any], known: Iterable[str]) -> None:
    """Whether each is a sweep, or a choice of another group: "override /protocol: mad_lab"."""
    for other in given:
        if isinstance(other, str):
            plain = re.fullmatch(r"[\w-]+", other)  # Hydra also takes paths, suffixes and ${references}
            if other != "_self_" and plain and other not in known:
                raise unknown("sweep in defaults:", other, (*known, "_self_"))
            continue
        pairs = [*other.items()] if isinstance(other, dict) else []
        if len(pairs) != 1 or not isinstance(pairs[0][0], str) or not isinstance(pairs[0][1], (str, list, type(None))):
            raise ValueError(
                f"defaults must be a list of names, or of {{override /group: choice}}, as [mad, _self_], got {other!r}"
            )
        ((key, choice),) = pairs
        group = key.removeprefix("override ").strip().lstrip("/")
        there = [file.stem for place in (ROOT / "conf", *search_path()) for file in (place / group).glob("*.yaml")]
        plain = isinstance(choice, str) and re.fullmatch(r"[\w-]+", choice)
        if there and plain and choice not in there and group != "task":  # a task needs no file
            raise unknown(f"choice in defaults: {key}:", choice, there)


def _check(given: Any) -> None:
    """Whether a sweep's file, read, holds what it may, in the sections that it has."""
    for section, keys in SECTIONS.items():
        place = given
        for part in filter(None, section.split(".")):
            place = place.get(part, {})  # what it is a part of has been seen to be a mapping
        if not isinstance(place, dict):
            raise ValueError(_no_mapping(section, place))
        prefix = f"{section}." if section else ""
        for key in place:
            if keys and key not in keys:
                raise unknown("key", f"{prefix}{key}", (prefix + choice for choice in keys))
    for key in ("stack", "name"):
        if key in given.get("arch", {}):
            raise ValueError(
                f"arch.{key} here would be that of every architecture, whichever is chosen; put it into "
                f"hydra.sweeper.params, as arch.{key}: {'hyena-swiglu*2' if key == 'stack' else 'mine'}"
            )
    for key, kind, example in (("defaults", "names", "[mad, _self_]"), ("plugins", "files", "[mine.py]")):
        value = given.get(key, [])
        if not isinstance(value, list) or (key == "plugins" and not all(isinstance(file, str) for file in value)):
            raise ValueError(f"{key} must be a list of {kind}, as {example}, got {value!r}")
    _check_types({key: value for key, value in given.items() if key not in ("defaults", "hydra")})
    sweeper = given.get("hydra", {}).get("sweeper", {})
    for key, value in sweeper.get("params", {}).items():
        if key in SECTIONS and isinstance(value, dict):
            raise ValueError(f"hydra.sweeper.params: write {key}.{next(iter(value), 'key')}: ..., not {key}: {value}")
        if value == []:
            raise ValueError(f"hydra.sweeper.params: {key} is an axis without a value")
    entries("archs", "arch", sweeper.get("archs"))
    if not isinstance(sweeper.get("settings"), str):  # a protocol's name
        entries("settings", "task", sweeper.get("settings"))


def _check_types(given: dict[str, Any]) -> None:
    """Hydra would refuse them as it composes, in its own words and with the exit status of runs that failed."""
    try:
        OmegaConf.merge(OmegaConf.structured(SweepConfig), given)
    except OmegaConfBaseException as error:
        value = OmegaConf.select(OmegaConf.create(given), error.full_key or "")
        axis = "; the values of an axis go into hydra.sweeper.params" if isinstance(value, ListConfig) else ""
        raise ValueError(f"{error.full_key}: {str(error.msg).partition(chr(10))[0]}{axis}") from None


def _no_mapping(section: str, given: Any) -> str:
    hint = f"; a choice of it goes into hydra.sweeper.params, as {section}: {given}"
    return (
        f"{section or 'a sweep'} must be a mapping of its keys, got {'nothing' if given is None else repr(given)}"
        f"{hint if section in GROUPS and isinstance(given, str) else ''}"
    )
