"""What a run does on its device: updates and evaluations, queued without waiting for them.

All that changes from step to step lies in tensors that stay in place: which rows of the data a step reads, its learning
rate, weights, moments, sums of losses. So a step is the same work each time, which can be recorded (`graphs`), and a
next run of the same shapes can take over the trainer of the last, recordings and all.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mad import plugins
from mad.config import Run, recorded
from mad.training.data import Examples
from mad.training.evaluate import Evaluation, loss_of
from mad.training.graphs import Graphs, Immediate
from mad.training.optimiser import AdamW
from mad.training.prepare import build_model
from mad.training.regions import compile_layers
from mad.training.trial import try_layers

STAGED = 32  # steps whose rows and rates are handed to the device at once

Parts = list[Examples]


class Trainer:
    """The model of a prepared run and what is done with it, on the run's device."""

    def __init__(self, run: Run, task: Any, train: Parts, test: Parts):
        self.device, self.batch_size, self.vocab_size = run.device, run.train.batch_size, task.vocab_size
        self.kind = kind(run, task, train, test)
        self.about = about(run)
        self.do = Immediate() if run.mode == "eager" else Graphs()
        model = build_model(run, task)
        try_layers(model.stack, task.input_length)
        self.model = model.to(run.device)
        if run.mode == "compiled":
            compile_layers(self.model)
        self.update = Update(run, self.model, train, self.do)
        self.evaluations = {"test": self._evaluation(test)}
        self.remembered: dict[str, torch.Tensor] | None = None

    def remember(self) -> None:
        """Keep the model as it is now, for `recall`."""
        now = self.model.state_dict()
        if self.remembered is None:
            self.remembered = {name: t.clone() for name, t in now.items()}
        else:
            for name, kept in self.remembered.items():
                kept.copy_(now[name])

    def recall(self) -> None:
        """The model back as it was remembered, if it was."""
        if self.remembered is not None:
            self.model.load_state_dict(self.remembered)
            self.remembered = None

    def take_over(self, run: Run, task: Any, train: Parts, test: Parts) -> bool:
        """Begin `run` in place of the last, if it is of the same kind: weights as drawn for it, its own data."""
        if self.kind != kind(run, task, train, test):
            return False
        if any(len(new) > len(mine) for mine, new in zip(self.update.parts, train, strict=True)):
            return False
        fresh = build_model(run, task)
        with torch.no_grad():
            for mine, new in zip(_tensors(self.model), _tensors(fresh), strict=True):
                mine.copy_(new)
            for mine, new in zip(self.update.parts, train, strict=True):
                mine.become(new)
        self.put("test", test)
        self.update.restart()
        self.remembered = None
        return True

    def put(self, split: str, parts: Parts) -> None:
        """The examples that `queue(split)` measures on."""
        there = self.evaluations.get(split)
        if there is not None and [shapes(part) for part in there.parts] == [shapes(part) for part in parts]:
            for mine, new in zip(there.parts, parts, strict=True):
                mine.become(new)
        else:
            self.do.forget(there)
            self.evaluations[split] = self._evaluation(parts)

    def _evaluation(self, parts: Parts) -> Evaluation:
        return Evaluation(self.model, parts, self.batch_size, self.vocab_size, self.do, self.update.autocast)

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "update": self.update.state(), "remembered": self.remembered}

    def load(self, state: dict[str, Any]) -> None:
        """Back to what `state` gave, before the run's first step."""
        self.model.load_state_dict(state["model"])
        self.update.load(state["update"])
        self.remembered = state["remembered"]


class Update:
    """One optimiser step, queued on the device; the loss is added to a sum that stays there."""

    def __init__(self, run: Run, model: Any, parts: Parts, do: Immediate):
        self.model, self.parts, self.do = model, parts, do
        self.device, self.clip, self.bf16 = run.device, run.optim.clip, run.train.precision == "bf16"
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.rows = torch.zeros(STAGED, run.train.batch_size, dtype=torch.int64, device=run.device)
        self.rates = torch.zeros(STAGED, device=run.device)
        self.place = torch.zeros(1, dtype=torch.int64, device=run.device)  # of the next step among those staged
        self.lr = torch.tensor(run.optim.lr, device=run.device)
        self.optimiser = AdamW(self.parameters, self.lr, run.optim.weight_decay)
        self.loss = torch.zeros((), dtype=torch.float64, device=run.device)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        try:
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
                yield
        finally:
            torch.clear_autocast_cache()  # a caller's autocast around this would keep weights as they were rounded here

    def stage(self, rows: Sequence[torch.Tensor], rates: list[float]) -> None:
        """The rows and learning rates of the next steps, at most STAGED."""
        _send(torch.stack(list(rows)), self.rows[: len(rows)])
        _send(torch.tensor(rates), self.rates[: len(rates)])
        self.place.zero_()

    def pieces(self, parts: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The staged steps, whose rows are of `parts`, as pieces of work: a part, and how many steps of it."""
        for part, steps in itertools.groupby(parts):
            many, rest = divmod(len(list(steps)), self.do.together)
            yield from [(part, self.do.together)] * many + [(part, 1)] * rest

    def __call__(self, part: int, steps: int = 1) -> None:
        """Queue the next `steps` staged steps, whose rows are of `part`."""
        self.do(("step", (part, steps)), lambda: self._steps(self.parts[part], steps))

    def _steps(self, examples: Examples, steps: int) -> None:
        for _ in range(steps):
            self._step(examples)

    def _step(self, examples: Examples) -> None:
        batch = examples.take(self.rows.index_select(0, self.place).squeeze(0))
        self.lr.copy_(self.rates.index_select(0, self.place).squeeze(0))
        with self.autocast():
            loss = loss_of(self.model(batch.inputs, batch.positions), batch.targets)
        self.optimiser.zero_grad()
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.loss += loss.detach()
        self.place += 1

    def restart(self) -> None:
        """Moments, step counts and the sum of losses back to zero."""
        self.optimiser.restart()
        self.loss.zero_()

    def state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state(), "loss": self.loss}

    def load(self, state: dict[str, Any]) -> None:
        """Back to what `state` gave."""
        self.optimiser.load(state["optimiser"])
        self.loss.copy_(state["loss"])


class Reading:
    """Values on their way from the device to the host."""

    def __init__(self, *tensors: torch.Tensor):
        self.event = None
        if tensors[0].device.type == "cpu":
            self.values = [tensor.clone() for tensor in tensors]
            return
        self.values = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for value, tensor in zip(self.values, tensors, strict=True):
            value.copy_(tensor, non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record()

    def ready(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> list[torch.Tensor]:
        if self.event is not None:
            self.event.synchronize()
        return self.values


def kind(run: Run, task: Any, train: Parts, test: Parts) -> str:
    """What two runs must share for one trainer to do both: all that its recordings hold fixed."""
    sizes = [shapes(part)[1:] for part in train], [shapes(part) for part in test]
    return json.dumps([about(run), task.vocab_size, task.head, sizes, plugins.digests(run.plugin_texts)])


def shapes(examples: Examples) -> list[Any]:
    """Their number, and the shapes of one."""
    return [len(examples), *(None if t is None else list(t.shape[1:]) for t in examples.tensors)]


def about(run: Run) -> str:
    """As much of `kind` as can be told without the data."""
    return json.dumps(recorded(run))


def _tensors(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _send(values: torch.Tensor, to: torch.Tensor) -> None:
    """Copy from host to device, without waiting for what the device has still to do."""
    to.copy_(values.pin_memory() if to.is_cuda else values, non_blocking=True)
