"""Examples from disk, in the layout of the published benchmark: <path>/{train,test}/{inputs,targets}.npy."""

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mad import tasks
from mad.registry import unknown
from mad.tasks.base import IGNORE, Examples, Task, at_least

HEADS = ("lm", "autoencoder")


@tasks.register("folder")
class Folder(Task):
    """The arrays of a folder, integers (N, T); targets of -100 carry no loss and no score.

    `sample` takes the first sequences of a split, whatever the seed. There is no "valid" split: the layout has none,
    and a tail of "train" may be trained on. The digest says which arrays they were: it stands in every record and in
    the run id.

    Args:
        path: the folder.
        head: the model that the task asks for, "lm" or "autoencoder".
        vocab_size: ids; None: the largest in the files, and one.
        digest: what the arrays must be, as the first 16 hexadecimal digits of the SHA-256 of the four files' own (shape
            and ids, each as eight bytes, little-endian); None: whatever they are.
    """

    splits = ("train", "test")

    def __init__(
        self, *, path: str | None = None, head: str = "lm", vocab_size: int | None = None, digest: str | None = None
    ):
        if path is None:
            raise ValueError("a folder needs path=..., with train/ and test/ in it, each inputs.npy and targets.npy")
        if head not in HEADS:
            raise unknown("head", head, HEADS)
        self.path, self.head = str(path), head
        self._shapes = shapes = {split: self._open(split)[0].shape for split in self.splits}
        self.num_train, self.num_test = shapes["train"][0], shapes["test"][0]
        found = [_read(*_version(file)) for split in self.splits for file in self._files(split)]
        largest = max(file.largest for file in found)
        self.digest = hashlib.sha256("".join(file.digest for file in found).encode()).hexdigest()[:16]
        if digest not in (None, self.digest):
            raise ValueError(f"the folder {self.path} has the digest {self.digest}, but digest={digest} was asked for")
        if vocab_size is not None:
            at_least(largest + 1, f"the largest id in {self.path} is {largest}", vocab_size=vocab_size)
        super().__init__(vocab_size=vocab_size or largest + 1, seq_len=max(shape[1] for shape in shapes.values()))

    def sample(self, num: int, seed: int = 0, split: str = "train") -> Examples:
        """The first `num` examples of a split.

        Raises:
            ValueError: a split the task does not have, or fewer sequences than asked for.
        """
        self.check_request(num, seed, split)
        return Examples(*(torch.from_numpy(array[:num].astype(np.int64)) for array in self._open(split)))

    def lengths(self, split: str) -> list[int]:
        return [self._shapes[split][1]]

    def available(self, split: str) -> int:
        return self.num_train if split == "train" else self.num_test

    def _files(self, split: str) -> list[Path]:
        return [Path(self.path, split, f"{name}.npy") for name in ("inputs", "targets")]

    def _open(self, split: str) -> list[np.ndarray]:
        """Inputs and targets of a split, checked, not yet read."""
        arrays = [_load(file) for file in self._files(split)]
        if arrays[0].shape != arrays[1].shape:
            shapes = " and ".join(str(array.shape) for array in arrays)
            raise ValueError(f"inputs and targets in {Path(self.path, split)} must have one shape, got {shapes}")
        return arrays


def write_folder(task: Task, path: str | Path, num_train: int, num_test: int, seed: int = 0) -> None:
    """Write examples of a task in the layout that `Folder` reads; files that exist are replaced."""
    for split, num in (("train", num_train), ("test", num_test)):
        folder = Path(path, split)
        folder.mkdir(parents=True, exist_ok=True)
        examples = task.sample(num, seed=seed, split=split)
        np.save(folder / "inputs.npy", examples.inputs.numpy())
        np.save(folder / "targets.npy", examples.targets.numpy())


def _load(file: Path) -> np.ndarray:
    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected train/ and test/, each with inputs.npy and targets.npy")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # pickled objects, or not an array file at all
        raise ValueError(f"{file} is not an array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer) or array.ndim != 2:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise ValueError(f"{file} must hold integers of shape (sequences, tokens), got {found}")
    if not array.size:
        raise ValueError(f"{file} is empty, its shape is {array.shape}")
    return array


def _version(file: Path) -> tuple[Path, int]:
    return file, file.stat().st_mtime_ns


class _File(NamedTuple):
    largest: int  # id
    digest: str


@functools.lru_cache(maxsize=256)
def _read(file: Path, mtime_ns: int) -> _File:
    """What is in a file, read once a version: a sweep builds a task at each of its points."""
    array = _load(file)
    lowest = int(array[array != IGNORE].min(initial=0)) if file.stem == "targets" else int(array.min())
    if lowest < 0:
        raise ValueError(f"{file} holds the id {lowest}; expected ids from 0 (in targets also {IGNORE}: no loss)")
    hashed = hashlib.sha256(str(array.shape).encode())
    for row in array:
        hashed.update(row.astype("<i8").tobytes())
    return _File(int(array.max()), hashed.hexdigest())
