"""Data made elsewhere, in the layout of the published MAD benchmark: train/ and test/, each inputs.npy and targets.npy.

Arrays are integers (N, T), -100 in the targets where nothing is scored.
"""

from pathlib import Path

import numpy as np
import torch

from mad.tasks.base import IGNORE, Examples, Task, check_at_least, check_split, registry


@registry.register("folder")
class Folder(Task):
    """Options: path, head ("lm" or "autoencoder"), vocab_size (None: the largest id + 1).

    The folder has no validation split, so runs on it record no valid scores.
    """

    splits = ("train", "test")

    def __init__(self, *, path: str = "", head: str = "lm", vocab_size: int | None = None):
        if not path:
            raise ValueError("task folder needs task.path: a folder with train/ and test/, each inputs.npy, targets.npy")
        self.path, self.head = str(path), head
        arrays = {split: self.load(split) for split in self.splits}
        self.num_train, self.num_test = (len(arrays[split][0]) for split in self.splits)
        lengths = {a.shape[1] for pair in arrays.values() for a in pair}
        if len(lengths) > 1:
            raise ValueError(f"the arrays under {path!r} have several lengths, {sorted(lengths)}; expected one")
        self.input_length = lengths.pop()
        least = 1 + max(int(a.max()) for pair in arrays.values() for a in pair)
        if vocab_size is not None and vocab_size < least:
            raise ValueError(f"vocab_size={vocab_size} is below the ids under {path!r}; expected at least {least}")
        self.vocab_size = vocab_size or least

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """inputs and targets of a split, mapped from the files."""
        arrays = []
        for name in ("inputs", "targets"):
            file = Path(self.path) / split / f"{name}.npy"
            if not file.is_file():
                raise ValueError(f"{file} does not exist; expected train/ and test/, each with inputs.npy, targets.npy")
            array = np.load(file, mmap_mode="r")
            if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
                raise ValueError(f"{file} must hold integers (N, T), got {array.dtype} {array.shape}")
            arrays.append(array)
        inputs, targets = arrays
        if inputs.shape != targets.shape:
            raise ValueError(f"inputs {inputs.shape} and targets {targets.shape} of {self.path}/{split} differ in shape")
        if inputs.min() < 0 or targets.min() < IGNORE or ((targets < 0) & (targets != IGNORE)).any():
            raise ValueError(f"ids under {self.path}/{split} must be at least 0, or {IGNORE} in targets")
        return inputs, targets

    def sample(self, num: int, seed: int = 0, split: str = "train") -> Examples:
        """The first `num` examples of the split; the data are fixed, so `seed` changes nothing."""
        check_split(split, self.splits)
        check_at_least("num", num, 1)
        inputs, targets = self.load(split)
        if num > len(inputs):
            raise ValueError(f"{num} examples wanted, but {self.path}/{split} holds {len(inputs)}")
        return Examples(*(torch.from_numpy(a[:num].astype(np.int64)) for a in (inputs, targets)))


def write_folder(task: Task, path: str | Path, num_train: int, num_test: int, seed: int = 0) -> None:
    """Write a task's examples in that layout."""
    for split, num in (("train", num_train), ("test", num_test)):
        folder = Path(path) / split
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in zip(("inputs", "targets"), task.sample(num, seed, split), strict=True):
            np.save(folder / f"{name}.npy", array.numpy())
