"""The training loop: one run -> one record.

Nothing in a step waits for the device: losses are summed there and read once per evaluation. A run is a generator that
yields whenever it has queued a step, so that one thread may interleave several on a GPU.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from mad.config import Run
from mad.records import Record
from mad.training import budget, data, host
from mad.training.checkpoint import Checkpoint, Checkpoints, Outdated
from mad.training.evaluate import evaluate, loss_of
from mad.training.prepare import build_model, build_task, cost, prepare
from mad.training.schedule import learning_rate

CURVE_POINTS = 50  # at most, in a record

Progress = Callable[[dict[str, Any]], None]


def train(
    run: Run | Mapping[str, Any], on_progress: Progress | None = None, checkpoints: Checkpoints | None = None
) -> Record:
    """Train one run.

    Args:
        run: a Run, or nested mappings with its keys.
        on_progress: called at every evaluation with {"step", "steps", "accuracy"}.
        checkpoints: where a run that takes longer than a few minutes keeps its state, and goes on from; None: nowhere.

    Returns:
        Its record, with status "ok", or "diverged" where a loss was not finite. The same run on the same device gives
        the same record, but for `seconds` and `started`.

    Raises:
        ValueError: the run cannot be; see `prepare`.
    """
    run = prepare(run)
    checkpoint = Checkpoint(checkpoints, run.id)
    while True:
        with host.repeatable(run.seed, run.device, run.train.deterministic), contextlib.suppress(Outdated):
            steps = _steps(run, on_progress, checkpoint)
            while True:
                try:
                    next(steps)
                except StopIteration as stop:
                    return stop.value


def _steps(run: Run, on_progress: Progress | None, checkpoint: Checkpoint) -> Generator[None, None, Record]:
    """Queue the run's updates one by one; returns the record."""
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    task, settings = build_task(run), run.train
    num_train, num_test = settings.num_train or task.num_train, settings.num_test or task.num_test
    train_parts = data.load(task, num_train, run.seed, "train", run.device)
    batches = data.Batches(train_parts, settings.batch_size, run.seed)
    test = data.load(task, num_test, run.seed, "test", run.device)
    model = build_model(run, task).to(run.device)
    update = Update(run, model)
    model_cost = cost(run, task)
    steps = budget.steps(settings, task, model_cost) or settings.epochs * batches.per_epoch
    every = settings.eval_every or (steps if task.is_corpus else batches.per_epoch)

    def measure(parts: list[data.Examples]) -> dict[str, float]:
        with update.autocast():
            scores = evaluate(model, parts, settings.batch_size, task.vocab_size)
        return scores | task.of_loss(scores["loss"])

    status, step, curve, seen, before = "ok", 0, [], 0, 0.0
    saved = checkpoint.load(run.device)
    if saved is not None:
        with checkpoint.fitting():
            step, curve, seen, before = (saved[key] for key in ("step", "curve", "seen", "seconds"))
            model.load_state_dict(saved["model"])
            update.load(saved["update"])
            batches.load(saved["batches"])
    while step < steps:
        if checkpoint.due():
            state = {"model": model.state_dict(), "update": update.state(), "batches": batches.state()}
            so_far = {"step": step, "curve": curve, "seen": seen, "seconds": before + time.perf_counter() - began}
            checkpoint.save(run.device, state | so_far)
        update(batches.next(), learning_rate(run.optim, step, steps))
        step += 1
        if step % every and step < steps:
            yield
            continue
        train_loss, seen = update.mean_loss(step - seen), step
        scores = measure(test)
        curve.append({"step": step, "train_loss": train_loss, **scores})
        if on_progress is not None:
            on_progress({"step": step, "steps": steps, "accuracy": scores["accuracy"]})
        if not (math.isfinite(train_loss) and math.isfinite(scores["loss"])):
            status = "diverged"
            break
        if settings.stop_at is not None and scores[settings.score] >= settings.stop_at:
            break
        yield

    metrics = _final(curve, status)
    if status == "ok" and "valid" in task.splits:
        valid = measure(data.load(task, num_test, run.seed, "valid", run.device))
        names = ("accuracy", "macro_accuracy", "loss", *task.of_loss(0.0))
        metrics |= {f"valid_{name}": valid[name] for name in names}
    return Record(
        run_id=run.id,
        status=status,
        config=run.to_dict(),
        metrics=metrics,
        curve=_thin(curve),
        cost=vars(model_cost) | budget.spent(model_cost, model, batches),
        steps=step,
        seconds=before + time.perf_counter() - began,
        started=started,
        device=host.device_name(run.device),
        git_commit=host.git_commit(),
        versions=host.versions(),
    )


class Update:
    """One optimiser step, queued on the device; the loss is added to a sum that stays there."""

    def __init__(self, run: Run, model: Any):
        self.model, self.device, self.clip = model, run.device, run.optim.clip
        self.bf16 = run.train.precision == "bf16"
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        on_gpu = run.device == "cuda"
        self.lr = torch.tensor(run.optim.lr, device=run.device)  # a tensor: changing it changes no captured graph
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=self.lr,
            weight_decay=run.optim.weight_decay,
            fused=True,
            capturable=on_gpu,
        )
        self.loss = torch.zeros((), dtype=torch.float64, device=run.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)

    def __call__(self, batch: data.Examples, lr: float) -> None:
        self.lr.fill_(lr)
        with self.autocast():
            loss = loss_of(self.model(batch.inputs, batch.positions), batch.targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.loss += loss.detach()

    def state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "loss": self.loss}

    def load(self, state: dict[str, Any]) -> None:
        """Back to what `state` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        self.loss.copy_(state["loss"])

    def mean_loss(self, steps: int) -> float:
        """The mean over the last `steps` updates; waits for the device."""
        mean = self.loss.item() / steps
        self.loss.zero_()
        return mean


def _final(curve: list[dict[str, float]], status: str) -> dict[str, float]:
    """The numbers of the last evaluation; of the last finite one, where the run diverged."""
    measured = [point for point in curve if math.isfinite(point["train_loss"]) and math.isfinite(point["loss"])]
    if not measured:
        return {}
    final = {name: value for name, value in measured[-1].items() if name != "step"}
    return final | {f"best_{name}": max(p[name] for p in measured) for name in ("accuracy", "macro_accuracy")}


def _thin(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most CURVE_POINTS points, evenly spaced, the last one among them."""
    stride = -(-len(curve) // CURVE_POINTS)
    return curve[::-1][:: max(1, stride)][::-1]
