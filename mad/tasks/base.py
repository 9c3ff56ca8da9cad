"""What a task is: a generator of examples that are the same for the same arguments, wherever it runs."""

import hashlib
import inspect
import json
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from mad.memory import keep_freed_memory
from mad.registry import is_number, unknown

IGNORE = -100  # a target that carries no loss and no score
SPLITS = ("train", "valid", "test")
CHUNK_TOKENS = 2**18  # generated at once: bounds memory, and decides the data, so it must not follow the machine


class Examples(NamedTuple):
    """inputs and targets, int64 (N, T); a target of -100 carries no loss and no score."""

    inputs: torch.Tensor
    targets: torch.Tensor


class Task:
    """A synthetic task; a subclass draws sequences in `generate`, all of them at once.

    The options are the keyword-only arguments of a subclass's `__init__`, each kept as an attribute of its name.
    """

    name = ""  # set where the task is registered
    head = "lm"  # the model that it asks for: "lm" | "autoencoder"
    num_train, num_test = 12_800, 1_280  # sequences, as the protocol has them
    splits: tuple[str, ...] = SPLITS
    is_corpus = False  # True: a finite text; a run loads the sequences it trains on alone, and never stops early

    def __init__(self, *, vocab_size: int, seq_len: int):
        at_least(1, vocab_size=vocab_size, seq_len=seq_len)
        self.vocab_size, self.seq_len = vocab_size, seq_len

    @property
    def input_length(self) -> int:
        """Tokens of one input, the T of its (longest) examples."""
        return self.seq_len

    @property
    def options(self) -> dict[str, Any]:
        """All options and their values, plain: `build(task.name, **task.options)` is this task again."""
        return {name: getattr(self, name) for name in self._defaults()}

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, integers (num, input_length). Targets of training may differ from those of a test."""
        raise NotImplementedError(f"task {self.name!r} needs a method generate(self, rng, num, train)")

    def sample(self, num: int, seed: int = 0, split: str = "train") -> Examples:
        """`num` examples of a split; the same arguments give the same examples.

        The streams of seeds, splits, tasks and options are independent. "valid" is drawn as "test" is. NumPy may
        change what a `Generator` draws between its releases, hence the pinned version.

        Raises:
            ValueError: a split the task does not have, `num` below 1, or a negative seed; what `generate` made is not
                what it must be.
        """
        self.check_request(num, seed, split)
        keep_freed_memory()
        entropy = [seed, SPLITS.index(split), self._identity()]
        rng = np.random.default_rng(entropy)
        inputs = np.empty((num, self.input_length), dtype=np.int64)
        targets = np.empty_like(inputs)
        rows = max(1, CHUNK_TOKENS // self.input_length)
        with torch.random.fork_rng(devices=[]):  # a task that draws from torch, against advice, repeats too
            (own,) = np.random.SeedSequence(entropy).generate_state(1)
            torch.default_generator.manual_seed(int(own))
            for start in range(0, num, rows):
                chunk = slice(start, min(num, start + rows))
                made = self.generate(rng, chunk.stop - start, split == "train")
                inputs[chunk], targets[chunk] = self._checked(made, chunk.stop - start)
        return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))

    def parts(self, split: str) -> list[tuple["Task", int | None]]:
        """The tasks that a split consists of and their sequences, in the order of training; (self, None): but one."""
        if split not in self.splits:
            raise unknown(f"split of task {self.name!r}:", split, self.splits)
        return [(self, None)]

    def lengths(self, split: str) -> list[int]:
        """Tokens of a sequence of each part of a split: where tests are longer, training is not."""
        return [part.input_length for part, _ in self.parts(split)]

    def available(self, split: str) -> int | None:
        """How many sequences of a split there are; None: as many as one asks for."""
        return None

    def of_loss(self, loss: float) -> dict[str, float]:
        """Further metrics that follow from a loss, nats a scored position."""
        return {}

    def check_request(self, num: int, seed: int, split: str) -> None:
        """Raise for arguments of `sample` that make no sense."""
        if split not in self.splits:
            raise unknown(f"split of task {self.name!r}:", split, self.splits)
        at_least(1, num=num)
        at_least(0, seed=seed)
        most = self.available(split)
        if most is not None and num > most:
            raise ValueError(f"{num} sequences asked for, but split {split!r} of task {self.name!r} has {most}")

    def _checked(self, made: Any, num: int) -> list[np.ndarray]:
        """What `generate` made, if it is inputs and targets of this task: a GPU that looks up an id which is none is
        lost, and numbers with a fraction would be cut off.

        Raises:
            ValueError: it is not.
        """
        if not isinstance(made, tuple) or len(made) != 2:
            raise ValueError(f"task {self.name!r}: generate must return (inputs, targets), got {type(made).__name__}")
        arrays = [np.asarray(array) for array in made]
        for name, array in zip(("inputs", "targets"), arrays, strict=True):
            if array.shape != (num, self.input_length) or array.dtype.kind not in "iub":
                raise ValueError(
                    f"task {self.name!r}: {name} must be integers ({num}, {self.input_length}), which is (num, "
                    f"input_length), got {array.dtype} {array.shape}"
                )
            wrong = (array < 0) | (array >= self.vocab_size)
            if name == "targets":
                wrong &= array != IGNORE
            if wrong.any():
                also = f", or {IGNORE} where nothing is asked" if name == "targets" else ""
                raise ValueError(
                    f"task {self.name!r}: {name} hold {array[wrong][0]}; expected ids from 0 to {self.vocab_size - 1}, "
                    f"below vocab_size={self.vocab_size}{also}"
                )
        return arrays

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def _identity(self) -> int:
        """A number for the name and the options that are not defaults, so that a new option changes no old data."""
        defaults = self._defaults()
        chosen = {key: value for key, value in self.options.items() if value != defaults[key]}
        text = json.dumps([self.name, chosen], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def at_least(low: int, reason: str = "", **options: int) -> None:
    """Raise for options that are not whole numbers of at least `low`: `at_least(3, "...", vocab_size=vocab_size)`."""
    for name, value in options.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < low:
            because = f" ({reason})" if reason else ""
            raise ValueError(f"{name}={value!r} must be a whole number of at least {low}{because}")


def number(low: float = -math.inf, high: float = math.inf, **options: float) -> None:
    """Raise for options that are not finite numbers from `low` to `high`."""
    for name, value in options.items():
        if not is_number(value) or not low <= value <= high:
            between = "" if math.isinf(low) else f" from {low} to {high}"
            raise ValueError(f"{name}={value!r} must be a finite number{between}")


def even(name: str, value: int) -> None:
    """Raise for an odd number, naming its neighbours."""
    if value % 2:
        raise ValueError(
            f"{name}={value} is odd, but it must hold whole pairs; the nearest are {value - 1}, {value + 1}"
        )
