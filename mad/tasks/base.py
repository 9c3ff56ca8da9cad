"""What a task is: a generator of examples, the same on every machine for the same seed."""

import zlib
from typing import Any, NamedTuple

import numpy as np
import torch

from mad.registry import Registry, unknown

IGNORE = -100  # a target that carries no loss and no score
SPLITS = ("train", "valid", "test")  # valid is drawn as test is, from a stream of its own

registry = Registry("task")


class Examples(NamedTuple):
    """inputs and targets, int64 (N, T)."""

    inputs: torch.Tensor
    targets: torch.Tensor


class Task:
    """A subclass takes its options as keywords, sets `vocab_size` and `input_length`, and writes `generate`."""

    name: str
    vocab_size: int
    input_length: int  # tokens a model sees
    head = "lm"  # lm | autoencoder
    splits: tuple[str, ...] = SPLITS
    num_train, num_test = 12_800, 1_280  # the protocol's
    chunk = 4096  # sequences generated at once: bounds memory, and is part of what the data are

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        """`num` sequences: inputs and targets, integer arrays (num, input_length)."""
        raise NotImplementedError

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values."""
        return {option: getattr(self, option) for option in registry.options(self.name)}

    def parts(self, split: str) -> "list[tuple[Task, int | None]]":
        """Tasks of one length each and their numbers of examples (None: all); most tasks are their only part."""
        check_split(split, self.splits)
        return [(self, None)]

    def sample(self, num: int, seed: int = 0, split: str = "train") -> Examples:
        """Generate examples.

        Args:
            num: how many sequences.
            seed: any whole number of at least 0.
            split: "train", "valid" or "test"; the three never share a random stream.

        Returns:
            Examples with inputs and targets (num, input_length).

        Raises:
            ValueError: an unknown split, or num or seed out of range.
        """
        check_split(split, self.splits)
        check_at_least("num", num, 1)
        check_at_least("seed", seed, 0)
        inputs = np.empty((num, self.input_length), dtype=np.int64)
        targets = np.empty_like(inputs)
        for start in range(0, num, self.chunk):
            rows = slice(start, min(start + self.chunk, num))
            stream = [seed, SPLITS.index(split), zlib.crc32(self.name.encode()), start]
            inputs[rows], targets[rows] = self.generate(
                np.random.default_rng(stream), rows.stop - start, split != "train"
            )
        return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def check_split(split: str, splits: tuple[str, ...] = SPLITS) -> None:
    if split not in splits:
        raise unknown("split", split, splits)


def check_at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_even(name: str, value: int) -> None:
    if value % 2:
        raise ValueError(f"{name} must be even (pairs), got {value}; the nearest are {value - 1} and {value + 1}")


def check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
