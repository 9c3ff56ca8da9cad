"""What goes on during a sweep: a live display in a terminal, one plain line per finished run elsewhere."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mad.config import Run
from mad.engine.base import Event
from mad.records import STATUSES, Record

STYLES = {"ok": "green", "diverged": "yellow", "failed": "red"}


class Labels:
    """What the runs of a sweep are called, or those of records' `config`, which may be another mad's.

    'hyena-swiglu*2 · mqar · lr 0.0005', and where several runs would be called so, what differs among them: '· seed 3'.
    """

    def __init__(self, runs: Iterable[Run | Mapping[str, Any]] = ()):
        seen: dict[str, dict[str, set[str]]] = {}  # by what all runs are called by, key -> the values
        for config in map(_config, runs):
            values = seen.setdefault(_called(config), {})
            for key, value in _options(config).items():
                values.setdefault(key, set()).add(repr(value))
        self.varied = {called: [key for key in values if len(values[key]) > 1] for called, values in seen.items()}
        for keys in self.varied.values():
            if "arch.max_length" in keys and any(key.startswith("task.") for key in keys):
                keys.remove("arch.max_length")  # it follows the task

    def __call__(self, run: Run | Mapping[str, Any]) -> str:
        config = _config(run)
        called, options = _called(config), _options(config)
        more = (
            f"{key.rpartition('.')[2].replace('_', ' ')} {_value(options.get(key))}"
            for key in self.varied.get(called, ())
        )
        return " · ".join([called, *more])


def _config(run: Run | Mapping[str, Any]) -> Mapping[str, Any]:
    return run.to_dict() if isinstance(run, Run) else run


def _called(config: Mapping[str, Any]) -> str:
    arch, task, optim = (config.get(key) or {} for key in ("arch", "task", "optim"))
    return f"{arch.get('name') or arch.get('stack')} · {task.get('name')} · lr {_value(optim.get('lr'))}"


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's result, by the keys of the command line."""
    sections = {key: config.get(key) or {} for key in ("task", "arch", "optim", "train")}
    options = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return options | {"seed": config.get("seed")}


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Display:
    """Shows nothing; the displays below show what they are told."""

    label = Labels()  # set by whoever knows the sweep's runs

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def begin(self, total: int, there: int) -> None:
        """`total` runs are to come, `there` have a result already."""

    def on_event(self, event: Event) -> None:
        """A run has started or tells how far it is."""

    def on_record(self, record: Record) -> None:
        """A run has finished."""

    def on_elsewhere(self, run: Run) -> None:
        """Another process, which shares the folder, has done a run."""

    def on_trouble(self, message: str) -> None:
        """Something is in the way; the sweep goes on."""


def display(console: Console | None = None) -> Display:
    """The display that fits where standard output goes."""
    console = console or Console()
    return Lively(console) if console.is_terminal else Plain(lambda line: print(line, file=console.file, flush=True))


class Plain(Display):
    """One line per finished run."""

    def __init__(self, write: Callable[[str], None]):
        self.write = write
        self.total = self.finished = 0
        self.told: set[str] = set()

    def begin(self, total: int, there: int) -> None:
        self.total = total
        if there:
            self.write(f"{there} runs have a result already")

    def on_record(self, record: Record) -> None:
        self.finished += 1
        width = len(str(self.total))
        said = describe(record, self.label(record.config))
        self.write(f"[{self.finished:{width}}/{self.total}] {record.status:8}  {said}")

    def on_elsewhere(self, run: Run) -> None:
        self.finished += 1

    def on_trouble(self, message: str) -> None:
        if message not in self.told:  # it may come again for each run, or each second
            self.told.add(message)
            self.write(message)


class Lively(Display):
    """One line per run under way; below them a bar over all runs, with the time that is left and the counts."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self.console, self.clock = console, clock
        self.runs: dict[str, Event] = {}  # never changed in place: another thread draws it
        self.counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        self.total, self.elsewhere, self.began = 0, 0, clock()
        self.trouble = ""
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Display":
        self.began = self.clock()
        self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.stop()

    def begin(self, total: int, there: int) -> None:
        self.total = total
        if there:
            self.console.print(f"{there} runs have a result already")

    def on_event(self, event: Event) -> None:
        others = {run_id: other for run_id, other in self.runs.items() if run_id != event.run.id}
        self.runs = others if event.again else others | {event.run.id: event}

    def on_record(self, record: Record) -> None:
        self.counts[record.status] += 1
        self.runs = {run_id: event for run_id, event in self.runs.items() if run_id != record.run_id}
        if record.status == "failed":
            self.console.print(Text(f"failed  {describe(record, self.label(record.config))}", style=STYLES["failed"]))

    def on_elsewhere(self, run: Run) -> None:
        self.elsewhere += 1

    def on_trouble(self, message: str) -> None:
        if message != self.trouble:  # it may come again for each run, or each second
            self.trouble = message
            self.console.print(Text(message, style="yellow"))

    def render(self) -> Group:
        lines = Table.grid(padding=(0, 2))
        for event in sorted(self.runs.values(), key=lambda event: (event.worker, event.run.id)):
            lines.add_row(Text(str(event.worker), style="dim"), Text(self.label(event.run)), *_progress(event.progress))
        finished = sum(self.counts.values()) + self.elsewhere
        total = Table.grid(padding=(0, 2))
        counts = [Text(f"{count} {name}", style=STYLES[name]) for name, count in self.counts.items() if count]
        counts += [Text(f"{self.elsewhere} elsewhere")] if self.elsewhere else []
        bar = ProgressBar(total=max(1, self.total), completed=finished, width=30)
        total.add_row(bar, f"{finished}/{self.total}", self._left(finished), *counts)
        return Group(lines, total)

    def _left(self, finished: int) -> str:
        """The time that is left if the runs to come take as long as those before; those under way count in part."""
        done = finished + sum(_share(event.progress) for event in self.runs.values())
        elapsed = self.clock() - self.began
        left = f", {duration(elapsed * (self.total - done) / done)} left" if done else ""
        return duration(elapsed) + left


def describe(record: Record, called: str) -> str:
    """A finished run in one line: what it is called, and its accuracy, or its file and its error."""
    parts = [called]
    if record.status == "failed":
        return " · ".join([*parts, f"{record.run_id}.json", record.last_error or "no reason given"])
    if "accuracy" in record.metrics:
        parts.append(f"accuracy {record.metrics['accuracy']:.3f}")
    setup = f" ({record.setup_seconds:.1f} s compiling and capturing)" if record.setup_seconds >= 1 else ""
    return " · ".join([*parts, f"{record.steps} steps", f"{record.seconds:.1f} s{setup}"])


def duration(seconds: float) -> str:
    """'42 s', '3:07 min', '2:15 h'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"


def _progress(progress: dict[str, Any] | None) -> tuple[str, str]:
    if progress is None:
        return "starting", ""
    accuracy = progress.get("accuracy")
    said = progress.get("phase") or ("" if accuracy is None else f"accuracy {accuracy:.3f}")
    return f"step {progress['step']}/{progress['steps']}", said


def _share(progress: dict[str, Any] | None) -> float:
    return progress["step"] / progress["steps"] if progress else 0.0
