"""The front door: `python -m mad.sweep` turns overrides into runs, trains what is not there yet, and ranks it.

    python -m mad.sweep task=mqar arch=attention,based,hyena optim.lr=1e-3,3e-4 'seed=range(3)'

Every point is checked before the first trains. The same command again resumes. `--help` lists keys and choices.
"""

import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:

    def _stopped(*_: object) -> None:  # what is imported below takes seconds, and is no place for a traceback
        os.write(2, b"\nstopped before anything began\n")
        os._exit(130)

    signal.signal(signal.SIGINT, _stopped)

import argparse
import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mad import ROOT, config, engine, ladder, leaderboard, plugins, sweepfile, tasks, trackers, training
from mad.leaderboard.command import literal
from mad.records import Record, Store
from mad.records import table as records_table
from mad.sweepfile import OWN_STACK, SweepConfig, search_path

RUN_KEYS = tuple(config.Run.__dataclass_fields__)
OWN_KEYS = ("name", "results_dir", "engine", "tracker")  # the sweep's: no axes
PLACES = ("device", "mode")  # where and how a run executes, which its id does not know
SHOWN_ERRORS = 10
MISTAKES = (ValueError, HydraException, OmegaConfBaseException)
STOPPED = "\nstopped; what had finished is kept, the same command goes on from there"

FLAGS = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # Hydra's for showing a configuration
FLAGS.add_argument("--cfg", "-c")
FLAGS.add_argument("--resolve", action="store_true")

Point = tuple[dict[str, Any], list[str]]  # a configuration, and the overrides that led to it


def main() -> None:
    """The command: exit status 0, 1 where runs failed, 2 for a mistake in the command, 130 after Ctrl-C
    or SIGTERM, 141 where nobody reads what it prints."""
    try:
        _hand_to_hydra(sys.argv[1:])
    except KeyboardInterrupt:  # before the first run, or after the last
        print(STOPPED, file=sys.stderr)
        sys.exit(130)


def _hand_to_hydra(arguments: list[str]) -> None:
    # a habit from other commands of Hydra's, which would then read all else, and name no nearest choice
    arguments = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    try:
        files = sweepfile.read(arguments)
        plugins.load(plugins.read(_plugins_of(arguments, files.values())))
        sweepfile.check_shadowed(arguments)
    except ValueError as error:
        _refuse(error)
    ConfigStore.instance().store(name="schema", node=SweepConfig)
    for name in tasks.names():
        node = {"name": name, **tasks.options(name)}
        ConfigStore.instance().store(group="task", name=name, node=node)
    OmegaConf.register_new_resolver("mad_choices", sweepfile.choices, replace=True)  # for conf/hydra/help
    asked, overrides = FLAGS.parse_known_args(arguments)
    point.arguments, point.run_points = None, run_points
    if asked.cfg == "job" and not _for_hydra(overrides):
        arguments, point.run_points = overrides, show_first
    more = {}
    if _for_hydra(arguments):
        keys = {argument.partition("=")[0] for argument in arguments}
        more = {key: value for key, value in OWN_STACK.items() if "arch.stack" in keys and key not in keys}
    else:  # Hydra would refuse a mistaken override before the sweeper could name the nearest choice
        point.arguments = [argument for argument in arguments if not argument.startswith(("hydra.", "sweeps="))]
    sys.argv[1:] = [argument for argument in arguments if argument not in (point.arguments or ())]
    if not any(argument.startswith("hydra.searchpath=") for argument in arguments):
        more["hydra.searchpath"] = [f"file://{folder}" for folder in search_path()]
    # beside another override: Hydra takes no flags between two of them
    place = next((i for i, text in enumerate(sys.argv[1:], 1) if re.match(r"[+~]?[\w.@/]+=", text)), 1)
    sys.argv[place:place] = [f"{key}={literal(value)}" for key, value in more.items()]
    hydra.main(version_base=None, config_path=str(ROOT / "conf"), config_name="config")(point)()


def _for_hydra(arguments: list[str]) -> bool:
    """Whether these ask for something of Hydra's own, which then reads all of them, in place of the grid."""
    return any(argument.startswith(("-", "hydra.mode=", "hydra/")) for argument in arguments)


def point(cfg: DictConfig) -> None:
    """One point, as Hydra's stock launchers call it; the grid sweeper calls `run_points`."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    run_points(lambda: [(values, [])])


def show_first(points: Callable[[], list[Point]]) -> None:
    """`--cfg job`: the first run as its record would hold it, with the sweep's keys; all are checked, none trained."""
    try:
        runs, sweep = prepare(points())
    except MISTAKES as error:
        _refuse(error)
    with _unread():
        print(f"# the first of {len(runs)} runs; nothing was trained")
        print(OmegaConf.to_yaml(OmegaConf.create(sweep | runs[0].to_dict())), end="")


def run_points(points: Callable[[], list[Point]]) -> None:
    """Check all points, train those without a result, show the leaderboard, tell the tracker."""
    with _unread("nobody reads any more what is printed here", STOPPED.strip()):
        _run_points(points)


def _run_points(points: Callable[[], list[Point]]) -> None:
    console, began = Console(), time.perf_counter()
    try:
        runs, sweep = prepare(points())
        checked = time.perf_counter() - began
        store = Store(sweep["results_dir"], sweep["name"])
        options = dict(sweep["engine"])
        machine = engine.build(options.pop("name", "local"), **options)
        tracker = trackers.build(sweep["tracker"])
        store.make()
        store.check()
    except MISTAKES as error:
        _refuse(error)
    try:
        print(f"{sweep['name']}: {len(runs)} runs, checked in {checked:.1f} s -> {store.folder}", flush=True)
        summary = engine.execute(runs, store, machine, engine.display(console))
    except KeyboardInterrupt:
        print(
            f"\nstopped; what had finished is in {store.folder}, the same command goes on from there", file=sys.stderr
        )
        sys.exit(130)
    except engine.Unusable as error:
        _refuse(error)
    mine = {run.id for run in runs}
    everything = store.records()
    records = [record for record in everything if record.run_id in mine]
    _tell(summary)
    _tell_versions(records)
    ranked = any(record.status != "failed" for record in records)
    written = ["results.csv"]
    if ranked:
        table = records_table(records)
        board = leaderboard.build(table)
        leaderboard.show(board, console, title=sweep["name"])
        with _unwritten(store.folder):
            leaderboard.write_csv(board, store.folder / "leaderboard.csv")
            leaderboard.write_markdown(board, store.folder / "leaderboard.md")
            behind = leaderboard.details(table, records)
            leaderboard.write_html(board, store.folder / "leaderboard.html", behind, title=sweep["name"])
            written.append("leaderboard.csv, .md and .html")
        if len(everything) > len(records):
            print(
                f"the leaderboard is of this command's {len(records)} runs; of all {len(everything)} in the folder: "
                f"python -m mad.leaderboard {store.folder}"
            )
    tracker.publish(records, sweep["name"], store.folder)
    print(f"results in {store.folder}: {', '.join(written)}, runs/")
    failed = summary.counts["failed"]
    if summary.left:
        sys.exit(f"{summary.left} runs are left, the same command goes on with them")
    if failed:
        sys.exit(
            f"{failed} runs failed; their tracebacks are in {store.folder}/runs, the same command tries them again"
        )


point.run_points = run_points
point.arguments = None  # overrides that the grid sweeper gets past Hydra


def prepare(points: Iterable[Point]) -> tuple[list[config.Run], dict[str, Any]]:
    """The prepared runs of all points, each once, and the sweep's own keys.

    Raises:
        ValueError: there is no point, or some cannot run; the message has each different reason, and where it arose.
            Or the points are of several sweeps, or some are the same run in several places.
    """
    runs: dict[str, config.Run] = {}
    reasons: dict[str, list[str]] = {}
    sweep: dict[str, Any] = {}
    for values, overrides in points:
        before, sweep = sweep, {key: values[key] for key in OWN_KEYS}
        _check_same(OWN_KEYS, before or sweep, sweep, "a sweep has one")
        try:
            resolved = ladder.resolve(values)
            machine = dict(sweep["engine"])
            here = not engine.elsewhere(machine.pop("name", "local"), machine)
            run = training.prepare({key: resolved[key] for key in RUN_KEYS}, here=here)
        except (ValueError, NotImplementedError) as error:  # the latter of a layer that lacks a method
            reasons.setdefault(str(error), []).append(" ".join(map(str, overrides)) or "the configuration")
        else:
            twin = runs.get(run.id, run)
            _check_same(PLACES, vars(twin), vars(run), "a run is the same run wherever and however it executes")
            runs[run.id] = run
    if reasons:
        lines = [f"{reason}\n    at {places[0]}{_more(places)}" for reason, places in reasons.items()]
        hidden = len(lines) - SHOWN_ERRORS
        rest = [f"... and {hidden} further mistakes"] if hidden > 0 else []
        raise ValueError("\n".join(["nothing was trained:", *lines[:SHOWN_ERRORS], *rest]))
    if not runs:
        raise ValueError("the sweep is empty: an axis has no values")
    if set(Path(sweep["name"].strip()).parts) <= {".", ".."}:  # its folder would be that of all sweeps, or above
        raise ValueError(
            f"nothing was trained: name is {sweep['name']!r}; expected what the sweep is called, name=mine"
        )
    if not sweep["results_dir"].strip():  # as of a shell's variable that is not set: it would be the folder one is in
        raise ValueError("nothing was trained: results_dir is empty; expected a folder, as results_dir=results/mine")
    try:
        leaderboard.check_tasks({run.task["name"] for run in runs.values()})
    except ValueError as error:
        raise ValueError(f"nothing was trained: {error}; register it under another name") from None
    scores = sorted({run.train.score for run in runs.values()})
    if len(scores) > 1:
        raise ValueError(
            f"nothing was trained: a sweep is ranked by one score, got train.score={','.join(scores)}; every record "
            "has all of them (python -m mad.leaderboard --score), and what stops a run is one sweep's, one score"
        )
    return list(runs.values()), sweep


def _check_same(keys: Iterable[str], one: dict[str, Any], other: dict[str, Any], why: str) -> None:
    """Of the values of an axis over these keys the last would count, and nothing would say so."""
    for key in keys:
        if one[key] != other[key]:
            texts = (literal(value) for value in (one[key], other[key]))
            raise ValueError(f"nothing was trained: {key} is {' and '.join(texts)}; {why}: give one value")


def _plugins_of(arguments: list[str], files: Iterable[dict[str, Any]]) -> list[str]:
    """The files of `plugins=[...]` on the command line, else of the sweep's: what they register must be there before
    names are looked up."""
    given = [argument for argument in arguments if argument.startswith("plugins=")]
    if not given:
        return next((file["plugins"] for file in reversed([*files]) if "plugins" in file), [])
    try:
        parsed = OverridesParser.create().parse_overrides(given)
    except HydraException as error:
        raise ValueError(str(error)) from None
    for override in parsed:
        if override.is_sweep_override():
            raise ValueError(f"{override.input_line}: all runs of a sweep have the same plugins; expected one list")
        if not isinstance(override.value(), list):
            raise ValueError(f"{override.input_line}: expected a list of files, plugins=[{override.value()}]")
    return [str(file) for override in parsed for file in cast(list, override.value())]


def _more(places: list[str]) -> str:
    return f" (and {len(places) - 1} more)" if len(places) > 1 else ""


@contextlib.contextmanager
def _unread(*said: str) -> Iterator[None]:
    """Inside, whoever reads what is printed may go away, as `| head -1` does: no traceback, and the status of that."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written, at the exit
        print(*said, sep="; ", end="\n" if said else "", file=sys.stderr)
        sys.exit(141)


@contextlib.contextmanager
def _unwritten(folder: Path) -> Iterator[None]:
    """What is derived from records can be derived again: a full disk is no reason to end with a traceback."""
    try:
        yield
    except OSError as error:
        print(f"mad.sweep: {error}; the records in {folder} are complete: python -m mad.leaderboard", file=sys.stderr)


def _tell_versions(records: list[Record]) -> None:
    """A run's id does not know the code: results of before a layer changed stand beside those of after."""
    versions = Counter(r.git_commit or f"mad {r.versions.get('mad', '?')}" for r in records if r.status != "failed")
    if len(versions) > 1:
        each = ", ".join(f"{count} of {version}" for version, count in versions.most_common())
        print(f"results of {len(versions)} versions of the code, which may differ in more than speed: {each}")


def _tell(summary: engine.Summary) -> None:
    if not summary.executed and not summary.elsewhere:
        print(f"nothing to train: all {summary.there} runs have a result already")
        return
    counts = [f"{count} {status}" for status, count in summary.counts.items() if count]
    counts += [f"{summary.elsewhere} elsewhere"] if summary.elsewhere else []
    print(f"{summary.executed + summary.elsewhere} runs in {summary.seconds:.1f} s: {', '.join(counts)}")


def _refuse(error: Exception) -> None:
    """A mistake in the command: say it in one line or a few, without a traceback."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    cause = str(error.__cause__).partition("\n")[0] if isinstance(error, HydraException) and error.__cause__ else ""
    quote = "; quote a value with spaces, ~, parentheses or accents for Hydra, as \"results_dir='/my dir'\""
    hint = quote if "LexerNoViableAlt" in str(error) else ""
    print(f"mad.sweep: {error}{': ' if cause else ''}{cause}{hint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as nohup would have it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a scheduler or a machine that shuts down says it
    main()
