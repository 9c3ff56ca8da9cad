"""The training loop: one run -> one record.

Nothing in a step waits for the device: losses are summed there and read once per evaluation. A run is a generator that
yields whenever it has queued a step or a few, or must wait for a reading, so that one thread can keep several going on
a GPU.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from mad import plugins
from mad.config import Run
from mad.records import Record
from mad.training import budget, data, host
from mad.training.checkpoint import Checkpoint, Checkpoints, Outdated
from mad.training.evaluate import scores
from mad.training.prepare import build_task, cost, cost_of_training, prepare
from mad.training.schedule import learning_rate
from mad.training.trainer import STAGED, Reading, Trainer, about

CURVE_POINTS = 50  # at most, in a record

Progress = Callable[[dict[str, Any]], None]


def train(
    run: Run | Mapping[str, Any], on_progress: Progress | None = None, checkpoints: Checkpoints | None = None
) -> Record:
    """Train one run.

    Args:
        run: a Run, or nested mappings with its keys.
        on_progress: called at every evaluation with {"step", "steps", "accuracy"}, and with {"step", "steps", "phase"}
            before the first step, where that may take long.
        checkpoints: where a run that takes longer than a few minutes keeps its state, and goes on from; None: nowhere.

    Returns:
        Its record, with status "ok", or "diverged" where a loss was not finite. The same run on the same device gives
        the same record, but for `seconds`, `setup_seconds` and `started`.

    Raises:
        ValueError: the run cannot be; see `prepare`.
    """
    run = prepare(run)
    steps = under_way(run, on_progress, checkpoints)
    place = host.own_place() if run.device == "cuda" else None
    with host.Scope(run.seed, run.device, run.train.deterministic, place):
        while True:
            try:
                waiting = next(steps)
            except StopIteration as stop:
                return stop.value
            if isinstance(waiting, Reading):
                waiting.wait()


class Kept:
    """The trainer that a lane's last run has left to the next."""

    trainer: Trainer | None = None

    def likely(self, run: Run) -> int:
        """How much of what a trainer holds fixed is `run`'s, too: 0 (no trainer), 1, 2."""
        if self.trainer is None:
            return 0
        return 2 if self.trainer.about == about(run) else 1


def under_way(
    run: Run, on_progress: Progress | None = None, checkpoints: Checkpoints | None = None, kept: Kept | None = None
) -> Generator[Reading | int, None, Record]:
    """Train a prepared run, inside its `host.Scope`; returns its record.

    Yields how many steps it has queued, or a Reading where it must not be resumed before that is ready.
    """
    checkpoint = Checkpoint(checkpoints, run.id)
    while True:
        torch.manual_seed(run.seed)
        with contextlib.suppress(Outdated):
            return (yield from _steps(run, on_progress or (lambda progress: None), checkpoint, kept or Kept()))


def _steps(run: Run, tell: Progress, checkpoint: Checkpoint, kept: Kept) -> Generator[Reading | int, None, Record]:
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    plugins.load(run.plugin_texts)  # it may have been prepared in another process
    task, settings = build_task(run), run.train
    num_train, num_test = settings.num_train or task.num_train, settings.num_test or task.num_test

    def load(split: str, num: int) -> list[data.Examples]:
        return data.load(task, num, run.seed, split, run.device, run.arch.max_length or 0)

    train_parts, test_parts = load("train", num_train), load("test", num_test)
    batches = data.Batches([len(part) for part in train_parts], settings.batch_size, run.seed)
    trainer, kept.trainer = kept.trainer, None  # a run that fails leaves none
    new = trainer is None or not trainer.take_over(run, task, train_parts, test_parts)
    if new:
        trainer = None  # its memory is free for the new one
        trainer = Trainer(run, task, train_parts, test_parts)
    assert trainer is not None
    test_sizes = [len(part) for part in test_parts]
    del train_parts, test_parts  # the trainer has them
    update, setup = trainer.update, trainer.do.seconds
    model_cost = cost(run, task)
    steps = budget.steps(settings, task, cost_of_training(run, task)) or settings.epochs * batches.per_epoch
    every = settings.eval_every or (steps if task.is_corpus else batches.per_epoch)

    def read(split: str, sizes: list[int]) -> Generator[Reading, None, tuple[float, dict[str, float]]]:
        """Measure on a split; returns the sum of the training losses, and the scores."""
        trainer.evaluations[split].queue()
        reading = Reading(update.loss, trainer.evaluations[split].counts)
        yield reading
        loss, counts = reading.wait()
        result = scores(counts, sizes)
        return loss.item(), result | task.of_loss(result["loss"])

    status, step, curve, seen, before = "ok", 0, [], 0, 0.0
    saved = checkpoint.load(run.device)
    if saved is not None:
        with checkpoint.fitting():
            step, curve, seen, before = (saved[key] for key in ("step", "curve", "seen", "seconds"))
            trainer.load(saved)
            batches.load(saved["batches"])
        del saved
    reported = _reported(curve, settings.report)
    if new and run.mode == "compiled":
        tell({"step": step, "steps": steps, "phase": "compiling"})
    while step < steps:
        if checkpoint.due():
            so_far = {"step": step, "curve": curve, "seen": seen, "seconds": before + time.perf_counter() - began}
            checkpoint.save(run.device, trainer.state() | {"batches": batches.state()} | so_far)
        ahead = min(STAGED, steps - step, every - step % every)
        parts, rows = zip(*(batches.next() for _ in range(ahead)), strict=True)
        update.stage(rows, [learning_rate(run.optim, step + i, steps) for i in range(ahead)])
        for part, together in update.pieces(parts):
            update(part, together)
            yield together
        step += ahead
        if step % every and step < steps:
            continue
        loss, measured = yield from read("test", test_sizes)
        update.loss.zero_()
        train_loss, seen = loss / (step - seen), step
        curve.append({"step": step, "train_loss": train_loss, **measured})
        tell({"step": step, "steps": steps, "accuracy": measured["accuracy"]})
        if not (math.isfinite(train_loss) and math.isfinite(measured["loss"])):
            status = "diverged"
            break
        previous, reported = reported, _reported([reported, curve[-1]], settings.report)
        if settings.report != "last" and reported is not previous:
            trainer.remember()
        if settings.stop_at is not None and measured[settings.score] >= settings.stop_at:
            break

    metrics = _final(curve, reported)
    if status == "ok" and "valid" in task.splits:
        trainer.recall()
        valid_parts = load("valid", num_test)
        trainer.put("valid", valid_parts)
        _, valid = yield from read("valid", [len(part) for part in valid_parts])
        names = ("accuracy", "macro_accuracy", "batch_macro_accuracy", "loss", *task.of_loss(0.0))
        metrics |= {f"valid_{name}": valid[name] for name in names}
    if run.mode != "eager":
        kept.trainer = trainer
    return Record(
        run_id=run.id,
        status=status,
        config=run.to_dict(),
        metrics=metrics,
        curve=_thin(curve),
        cost=vars(model_cost) | budget.spent(model_cost, trainer.model, batches, task.lengths("train")),
        steps=step,
        seconds=before + time.perf_counter() - began,
        setup_seconds=trainer.do.seconds - setup,
        started=started,
        device=host.device_name(run.device),
        git_commit=host.git_commit(),
        versions=host.versions() | plugins.versions(run.plugin_texts),
    )


def _final(curve: list[dict[str, float]], point: dict[str, float] | None) -> dict[str, float]:
    """The numbers of the evaluation that is reported, and the best of all."""
    if point is None:
        return {}
    best = {f"best_{name}": max(p[name] for p in _finite(curve)) for name in ("accuracy", "macro_accuracy")}
    return {("reported_step" if name == "step" else name): value for name, value in point.items()} | best


def _reported(points: Sequence[dict[str, float] | None], report: str) -> dict[str, float] | None:
    """The last evaluation, or the first of the lowest test perplexity, among the finite ones; None: there is none."""
    measured = _finite(point for point in points if point is not None)
    if not measured:
        return None
    if report == "last":
        return measured[-1]
    return min(measured, key=lambda point: (point["batch_perplexity"], point["loss"]))  # equal ones where it is cut off


def _finite(curve: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    return [point for point in curve if math.isfinite(point["train_loss"]) and math.isfinite(point["loss"])]


def _thin(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most CURVE_POINTS points, evenly spaced, the last one among them."""
    stride = -(-len(curve) // CURVE_POINTS)
    return curve[::-1][:: max(1, stride)][::-1]
