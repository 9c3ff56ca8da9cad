"""Resolve and check a run before any work starts: all that is left open is filled in, all that is wrong is said."""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from mad import models, plugins, tasks
from mad.config import Run
from mad.registry import unknown
from mad.training import budget, data, host
from mad.training.schedule import SCHEDULES

MOST_SEED = 2**64 - 1  # what torch's generators take
WORTH_COMPILING = 1000  # steps; compiling takes 4 to 25 s, but once a shape and process, which settings share
CHOICES = {
    "arch.init": models.INITS,
    "optim.schedule": tuple(SCHEDULES),
    "train.precision": ("auto", "fp32", "bf16"),
    "train.report": ("last", "lowest_perplexity"),
    "train.score": ("accuracy", "macro_accuracy", "batch_macro_accuracy"),
    "device": ("auto", "cpu", "cuda"),
    "mode": ("auto", "eager", "captured", "compiled"),
}


def prepare(given: Run | Mapping[str, Any], *, here: bool = True) -> Run:
    """The run with nothing left to choose: task options, expanded stack, sizes, precision and device.

    Its task and its model are built once, to see that they can be. `prepare` of a prepared run is that run.

    Args:
        here: whether it is to run on this machine, whose devices are known, or on another one.

    Raises:
        ValueError: anything unknown or impossible; the message names it, what was expected and the nearest choice.
    """
    run = Run.of(given)
    plugins.load(run.plugin_texts)
    _check_values(run)
    options = dict(run.task)
    if "name" not in options:
        raise ValueError(f"a run needs a task; expected task to be one of: {', '.join(tasks.names())}")
    task = tasks.build(options.pop("name"), **options)
    run.task = {"name": run.task["name"], **task.options}

    run.arch.stack = models.expand(run.arch.stack)
    run.arch.name = run.arch.name or models.compact(run.arch.stack)
    room = data.padded(task.input_length) if task.head == "lm" else task.input_length  # as `data.load` fills up
    run.arch.max_length = run.arch.max_length or room
    if run.arch.max_length < task.input_length:
        raise ValueError(
            f"arch.max_length={run.arch.max_length} is shorter than the {task.input_length} tokens of task "
            f"{run.task['name']!r}; expected at least {task.input_length}"
        )
    train = run.train
    steps = budget.steps(train, task, cost_of_training(run, task))  # a model that cannot be built says so now
    used = steps * train.batch_size if steps and task.is_corpus else task.num_train
    train.num_train = train.num_train or min(used, task.num_train)
    train.num_test = train.num_test or task.num_test
    _check_sequences(run, task)
    if task.is_corpus or train.tokens or train.budget_flops:
        train.stop_at = None
        if train.report != "last":
            raise ValueError(
                f"train.report={train.report} picks an earlier evaluation, but a run of a corpus, tokens or FLOPs is "
                "what its whole budget made of it; expected train.report=last"
            )
    run.device = _device(run.device, here)
    sizes = data.counts(task, train.num_train, "train")
    steps = steps or train.epochs * sum(data.batches_of(size, train.batch_size) for size in sizes)
    if run.optim.warmup_steps >= steps:
        raise ValueError(
            f"optim.warmup_steps={run.optim.warmup_steps} leaves nothing of the {steps} steps of the run, its learning "
            f"rate would never come to optim.lr; expected {steps - 1} at most"
        )
    run.mode = _mode(run, steps)
    if train.precision == "auto":
        train.precision = "bf16" if run.device == "cuda" else "fp32"
    return run


def build_task(run: Run) -> Any:
    """The task of a prepared run."""
    return tasks.build(run.task["name"], **{k: v for k, v in run.task.items() if k != "name"})


def build_model(run: Run, task: Any) -> Any:
    """The model of a prepared run, its weights drawn from torch's generator."""
    with host.seeded(run.seed):
        return _model(run.to_dict()["arch"], task.vocab_size, task.head)


def cost(run: Run, task: Any, length: int | None = None) -> models.Cost:
    """The cost of a prepared run's model on one sequence; None: of the task's longest."""
    spec = [run.to_dict()["arch"], task.vocab_size, task.head]
    return _cost(json.dumps(spec), length or task.input_length, tuple(plugins.digests(run.plugin_texts)))


def cost_of_training(run: Run, task: Any) -> models.Cost:
    """The same on one of the sequences trained on, of which the tests' may be longer."""
    return cost(run, task, max(task.lengths("train")))


def _model(arch: dict[str, Any], vocab_size: int, head: str) -> Any:
    options = {key: value for key, value in arch.items() if key not in ("stack", "name", "dim", "max_length")}
    return models.build(arch["stack"], arch["dim"], vocab_size, arch["max_length"], head, **options)


@functools.lru_cache(maxsize=1024)
def _cost(spec: str, length: int, plugin_digests: tuple[str, ...]) -> models.Cost:
    """Of a model that is built and dropped. A sweep repeats few models over many points; the texts of the plugins are
    part of what a model is."""
    arch, vocab_size, head = json.loads(spec)
    with torch.random.fork_rng(devices=[]), host.seeded(0):
        return models.cost(_model(arch, vocab_size, head), length)


def _check_values(run: Run) -> None:
    for key, choices in CHOICES.items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(run, section) if section else run, name)
        if value not in choices:
            raise unknown(key, value, choices)
    optim, train = run.optim, run.train
    for key, value, low in (
        ("optim.weight_decay", optim.weight_decay, 0),
        ("optim.min_lr", optim.min_lr, 0),
        ("optim.warmup_steps", optim.warmup_steps, 0),
        ("train.epochs", train.epochs, 1),
        ("train.steps", train.steps, 1),
        ("train.tokens", train.tokens, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.eval_every", train.eval_every, 1),
        ("train.num_train", train.num_train, 1),
        ("train.num_test", train.num_test, 1),
        ("arch.dim", run.arch.dim, 1),
        ("arch.max_length", run.arch.max_length, 1),
        ("seed", run.seed, 0),
    ):
        if value is not None and not low <= value < math.inf:
            raise ValueError(f"{key} must be at least {low} and finite, got {value}")
    if run.seed > MOST_SEED:
        raise ValueError(f"seed must be at most {MOST_SEED}, got {run.seed}")
    for key, value in (
        ("optim.lr", optim.lr),
        ("optim.clip", optim.clip),
        ("train.budget_flops", train.budget_flops),
    ):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{key} must be above 0 and finite, got {value}")
    if train.stop_at is not None and not 0 <= train.stop_at <= 1:
        raise ValueError(f"train.stop_at must be a share from 0 to 1, or null for never, got {train.stop_at:g}")
    if not 0 <= run.arch.embed_dropout < 1:
        raise ValueError(f"arch.embed_dropout must be at least 0 and below 1, got {run.arch.embed_dropout}")


def _check_sequences(run: Run, task: Any) -> None:
    for split in task.splits:
        key = "num_train" if split == "train" else "num_test"
        asked, most, parts = getattr(run.train, key), task.available(split), len(task.parts(split))
        if asked < parts:
            raise ValueError(
                f"train.{key}={asked} cannot be shared by the {parts} parts of split {split!r} of task "
                f"{run.task['name']!r}; expected at least {parts}"
            )
        if most is not None and asked > most:
            raise ValueError(
                f"train.{key}={asked}, but split {split!r} of task {run.task['name']!r} has {most} sequences of "
                f"{max(task.lengths(split))} tokens; expected {most} at most (what no override sets is "
                "sweeps=quickstart's)"
            )


def _mode(run: Run, steps: int) -> str:
    if run.mode == "auto":
        return "eager" if run.device == "cpu" else "compiled" if steps >= WORTH_COMPILING else "captured"
    if run.mode != "eager" and run.device == "cpu":
        raise ValueError(f"mode={run.mode} needs device=cuda; expected mode=eager or mode=auto on a CPU")
    return run.mode


def _device(device: str, here: bool) -> str:
    if not here:
        if device == "auto":
            raise ValueError("device=auto cannot be told here for runs on other machines; expected device=cuda or cpu")
        return device
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device here; expected device=cpu or device=auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
