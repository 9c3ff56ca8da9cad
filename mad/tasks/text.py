"""Text: a language model's own task, the next token of a corpus; bytes by default, or token ids from a file."""

import functools
import glob
import hashlib
import math
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mad import tasks
from mad.memory import keep_freed_memory
from mad.tasks.base import Examples, Task, at_least, number

TOKEN_FILES = (".bin", ".npy")
BYTES = 256  # ids of a corpus that is read as bytes
MOST_TESTED = 512  # sequences of a test by default
HASHED_AT_ONCE = 2**22  # tokens

# Of the standard library: tests, and what distributors ship apart or newer Pythons have dropped
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
LEFT_OUT |= {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"}


@tasks.register("text")
class Text(Task):
    """Consecutive windows of a corpus, each token's target the next one; every position is scored.

    The corpus is one stream, the files one after the other. Its last part, `held_out` of it, is not trained on: the
    first half of that tail is "valid", the second "test", and no window, targets included, reaches from one part into
    another. "train" takes the first windows of an order that the seed decides, "valid" and "test" evenly spaced ones,
    whatever the seed. The digest says which corpus it was: it stands in every record and in the run id.

    Args:
        path: a file, a folder (all files under it, sorted) or a glob, read as bytes; or one file of token ids, `.bin`
            (uint16, little-endian) or `.npy` (integers, one dimension). None: the source text of the running Python's
            standard library, without its tests (10 MB).
        seq_len: tokens of a window.
        vocab_size: ids; None: 256 for bytes, for a token file the largest id, and one.
        held_out: share of the stream that is held out; above 0, below 1.
        digest: what the corpus must be, as the first 16 hexadecimal digits of the SHA-256 of its ids, each as four
            bytes, little-endian; None: whatever it is.
    """

    is_corpus = True

    def __init__(
        self,
        *,
        path: str | None = None,
        seq_len: int = 256,
        vocab_size: int | None = None,
        held_out: float = 0.1,
        digest: str | None = None,
    ):
        at_least(1, seq_len=seq_len)
        number(0, 1, held_out=held_out)
        if path == "":
            raise ValueError("path is empty; expected a file, a folder, a glob, or null for the standard library")
        self.path, self.held_out = None if path is None else str(path), held_out
        corpus = _corpus(_files(self.path))
        self._corpus = corpus
        if digest is not None and digest != corpus.digest:
            raise ValueError(
                f"the corpus {self._where} has the digest {corpus.digest}, but digest={digest} was asked for"
            )
        self.digest = corpus.digest
        least = corpus.largest + 1
        if vocab_size is not None:
            at_least(least, f"the largest id of the corpus {self._where} is {corpus.largest}", vocab_size=vocab_size)
        super().__init__(vocab_size=vocab_size or (BYTES if corpus.is_bytes else least), seq_len=seq_len)
        self._check_parts()
        self.num_train = self.available("train")
        self.num_test = min(MOST_TESTED, self.available("valid"), self.available("test"))

    def sample(self, num: int, seed: int = 0, split: str = "train") -> Examples:
        """`num` windows of a split.

        Raises:
            ValueError: a split the task does not have, or fewer windows than asked for.
        """
        self.check_request(num, seed, split)
        keep_freed_memory()
        if split == "train":
            chosen = np.random.default_rng(seed).permutation(self.available(split))[:num]
        else:
            chosen = np.arange(num) * self.available(split) // num
        starts = self._parts[split][0] + chosen * self.seq_len
        every = np.lib.stride_tricks.sliding_window_view(self._corpus.tokens, self.seq_len + 1)  # no copy
        windows = torch.from_numpy(every[starts].astype(np.int64))  # (N, T + 1)
        return Examples(windows[:, :-1], windows[:, 1:])  # two views of one memory

    def of_loss(self, loss: float) -> dict[str, float]:
        """perplexity of a token; bits_per_byte where tokens are bytes."""
        perplexity = {"perplexity": math.inf if loss > 700 else math.exp(loss)}
        return perplexity | ({"bits_per_byte": loss / math.log(2)} if self._corpus.is_bytes else {})

    @property
    def _where(self) -> str:
        return "of the standard library" if self.path is None else self.path

    @property
    def _parts(self) -> dict[str, tuple[int, int]]:
        """Where in the stream each split begins and ends."""
        total = len(self._corpus.tokens)
        held = round(total * self.held_out)
        return {
            "train": (0, total - held),
            "valid": (total - held, total - held // 2),
            "test": (total - held // 2, total),
        }

    def available(self, split: str) -> int:
        """Whole windows in a split."""
        start, stop = self._parts[split]
        return max(0, stop - start - 1) // self.seq_len  # the last target must be inside, too

    def _check_parts(self) -> None:
        for split, (start, stop) in self._parts.items():
            if not self.available(split):
                raise ValueError(
                    f"the corpus {self._where} has {len(self._corpus.tokens)} tokens, with held_out={self.held_out} "
                    f"{stop - start} of them for {split!r}; expected at least {self.seq_len + 1} (seq_len and one)"
                )


class Corpus(NamedTuple):
    """A stream of token ids."""

    tokens: np.ndarray  # (n,) of the type on disk; a token file is mapped, not read
    is_bytes: bool
    largest: int
    digest: str


File = tuple[str, int, int]  # path, time of change in ns, bytes: another version is another corpus


def _files(path: str | None) -> tuple[File, ...]:
    """The files of a corpus as they are now, in the order of the stream."""
    if path is None:
        return _standard_library()
    given = Path(path)
    if given.is_dir():
        found: Iterable[Path] = sorted(file for file in given.rglob("*") if file.is_file())
    elif given.is_file():
        found = [given]
    elif glob.has_magic(path):
        found = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if Path(name).is_file()]
    else:
        raise ValueError(f"{path} does not exist; expected a file, a folder, a glob, or null for the standard library")
    files = _versions(found)
    if not files:
        raise ValueError(f"{path} holds no files" if given.is_dir() else f"{path} matches no files")
    return files


@functools.cache
def _standard_library() -> tuple[File, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    names = [file.relative_to(root) for file in root.rglob("*.py")]
    kept = [name for name in names if LEFT_OUT.isdisjoint(name.parts) and not name.name.startswith("_sysconfigdata")]
    return _versions(root / name for name in sorted(kept, key=lambda name: name.as_posix()))


def _versions(files: Iterable[Path]) -> tuple[File, ...]:
    return tuple((str(file), (about := file.stat()).st_mtime_ns, about.st_size) for file in files)


@functools.lru_cache(maxsize=4)
def _corpus(files: tuple[File, ...]) -> Corpus:
    """The stream of some files, read once a version: a sweep builds a task at each of its points."""
    paths = [Path(name) for name, *_ in files]
    is_bytes = not any(path.suffix in TOKEN_FILES for path in paths)
    if is_bytes:
        tokens = np.concatenate([np.fromfile(path, dtype=np.uint8) for path in paths])
    elif len(paths) == 1:
        tokens = _token_file(paths[0])
    else:
        first = next(path for path in paths if path.suffix in TOKEN_FILES)
        raise ValueError(f"{first} holds token ids and stands among {len(paths)} files; a token file is given alone")
    if not len(tokens):
        raise ValueError(
            f"{paths[0]} is empty" if len(paths) == 1 else f"all {len(paths)} files of the corpus are empty"
        )
    hashed, largest = hashlib.sha256(), 0
    for start in range(0, len(tokens), HASHED_AT_ONCE):
        chunk = tokens[start : start + HASHED_AT_ONCE]
        lowest, highest = int(chunk.min()), int(chunk.max())
        if lowest < 0 or highest >= 2**32:
            raise ValueError(f"{paths[0]} holds the id {lowest if lowest < 0 else highest}; expected 0 to {2**32 - 1}")
        largest = max(largest, highest)
        hashed.update(chunk.astype("<u4").tobytes())
    return Corpus(tokens, is_bytes, largest, hashed.hexdigest()[:16])


def _token_file(path: Path) -> np.ndarray:
    if path.suffix == ".bin":
        if path.stat().st_size % 2:
            raise ValueError(f"{path} has {path.stat().st_size} bytes; expected uint16 ids, two bytes each")
        return np.memmap(path, dtype="<u2", mode="r") if path.stat().st_size else np.empty(0, dtype="<u2")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # pickled objects, or not an array file at all
        raise ValueError(f"{path} is not an array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise ValueError(f"{path} must hold integers of shape (tokens,), got {found}")
    return array
