"""A task's examples on the training device, and batches of them.

Where few positions carry a loss, their places and targets are kept instead of whole rows of targets, so that a model
computes logits (V of them each) there alone. A row with fewer of them than the longest is filled up with places that
are not scored, hence shapes stay static. Sequences are filled up to whole multiples of 8 tokens with tokens that no
score looks at and no earlier token sees, because rows of 16 bytes and more are what kernels read fast.
"""

import functools
import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mad import tasks
from mad.tasks import IGNORE

MULTIPLE = 8  # tokens


@dataclass(frozen=True)
class Examples:
    """inputs (N, T); the scored positions (N, K) or None for all; targets (N, K) or (N, T). int64, one device."""

    inputs: torch.Tensor
    positions: torch.Tensor | None
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: torch.Tensor) -> "Examples":
        return Examples(self.inputs[rows], None if self.positions is None else self.positions[rows], self.targets[rows])

    def become(self, other: "Examples") -> None:
        """Hold the examples of `other`, which are no more and of the same shapes, in place."""
        for mine, theirs in zip(self.tensors, other.tensors, strict=True):
            if mine is not None and theirs is not None:
                mine[: len(theirs)].copy_(theirs)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        return self.inputs, self.positions, self.targets

    def to(self, device: str) -> "Examples":
        positions = None if self.positions is None else self.positions.to(device)
        return Examples(self.inputs.to(device), positions, self.targets.to(device))


def load(task: Any, num: int, seed: int, split: str, device: str, room: int = 0) -> list[Examples]:
    """The examples of each part of a task (one part, but for a mixture of lengths), `num` in all.

    Sequences of a causal task are filled up to a multiple of MULTIPLE tokens where that is no more than `room`.
    """
    sample = _sample if task.is_corpus else _kept  # runs of text differ in size, and several corpora fill a memory
    room = room if task.head == "lm" else 0
    return [
        fill_up(sample(type(part), json.dumps(part.options), count, seed, split), room).to(device)
        for (part, _), count in zip(task.parts(split), counts(task, num, split), strict=True)
    ]


def counts(task: Any, num: int, split: str) -> list[int]:
    """How many of `num` examples are of each part of a task, at least one."""
    shares = [share or 1 for _, share in task.parts(split)]
    edges = [round(num * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
    found = [max(1, stop - start) for start, stop in zip(edges, edges[1:], strict=False)]
    while sum(found) > max(num, len(found)):  # what went to parts that had none
        found[found.index(max(found))] -= 1
    return found


def _sample(kind: type[tasks.Task], options: str, num: int, seed: int, split: str) -> Examples:
    """By the class, not its name: a plugin that has changed registers another."""
    inputs, targets = kind(**json.loads(options)).sample(num, seed=seed, split=split)
    if not (targets != IGNORE).any():
        raise ValueError(
            f"split {split!r} of task {kind.name!r} asks nothing in all its {num} sequences: every target is {IGNORE}"
        )
    return compact(inputs, targets)


_kept = functools.lru_cache(maxsize=8)(_sample)  # for a worker's next runs: an optimiser grid shares its examples


def compact(inputs: torch.Tensor, targets: torch.Tensor) -> Examples:
    """Keep the scored positions alone where they are fewer than three quarters of a row."""
    scored = targets != IGNORE
    counts = scored.sum(1)
    most = max(1, int(counts.max()))
    if most > int(counts.min()):  # by chance: other examples of the task shall have the same shape
        most = min(padded(most), targets.shape[1])
    if most > 0.75 * targets.shape[1]:
        return Examples(inputs, None, targets)
    positions = scored.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
    return Examples(inputs, positions, targets.gather(1, positions))


def padded(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def fill_up(examples: Examples, room: int) -> Examples:
    """Sequences filled up at their ends to a multiple of MULTIPLE tokens, if that is no more than `room`."""
    missing = padded(examples.inputs.shape[1]) - examples.inputs.shape[1]
    if not missing or examples.inputs.shape[1] + missing > room:
        return examples
    targets = examples.targets
    if examples.positions is None:
        targets = F.pad(targets, (0, missing), value=IGNORE)
    return Examples(F.pad(examples.inputs, (0, missing)), examples.positions, targets)


def batches_of(size: int, batch_size: int) -> int:
    """Of a pass over `size` examples; all are full."""
    return -(-size // batch_size)


class Batches:
    """An endless stream of full batches; a pass over the data visits its parts in order.

    Each part is a stream of permutations, so every example is used once before any is used again, and a batch that
    runs past the end of one permutation goes on into the next.
    """

    def __init__(self, sizes: list[int], batch_size: int, seed: int):
        self.sizes, self.batch_size = sizes, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = [torch.empty(0, dtype=torch.int64) for _ in sizes]
        self.plan = [i for i, size in enumerate(sizes) for _ in range(batches_of(size, batch_size))]
        self.taken = 0

    @property
    def per_epoch(self) -> int:
        return len(self.plan)

    @property
    def trained(self) -> list[int]:
        """Sequences handed out so far, of each part."""
        passes, rest = divmod(self.taken, len(self.plan))
        counts = (passes * self.plan.count(i) + self.plan[:rest].count(i) for i in range(len(self.sizes)))
        return [self.batch_size * count for count in counts]

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "taken": self.taken, "generator": self.generator.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        """Back to what `state` gave."""
        self.rows, self.taken = state["rows"], state["taken"]
        self.generator.set_state(state["generator"])

    def next(self) -> tuple[int, torch.Tensor]:
        """The part that the next batch is of, and its rows there (batch_size,)."""
        i = self.plan[self.taken % len(self.plan)]
        self.taken += 1
        while len(self.rows[i]) < self.batch_size:
            self.rows[i] = torch.cat([self.rows[i], torch.randperm(self.sizes[i], generator=self.generator)])
        rows, self.rows[i] = self.rows[i].split([self.batch_size, len(self.rows[i]) - self.batch_size])
        return i, rows
