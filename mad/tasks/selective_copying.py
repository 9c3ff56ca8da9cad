"""Selective copying: pick the content out of the blanks, and repeat it in order."""

import numpy as np

from mad import tasks
from mad.tasks.base import IGNORE, Task, at_least


@tasks.register("selective_copying")
class SelectiveCopying(Task):
    """n content tokens with blanks before them, a copy marker, then n blanks in whose place the content is asked for.

    Poli et al. 2024 (arXiv 2403.17844). The last id is the marker, the one before it the blank. Each of the
    L - 2n - 1 blanks goes before a content token drawn uniformly. Training and test have the same targets.

    Args:
        vocab_size: ids; at least 3.
        seq_len: L; at least 2n + 2.
        tokens_to_copy: n.
    """

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 256, tokens_to_copy: int = 16):
        at_least(3, "content, blank and marker", vocab_size=vocab_size)
        at_least(1, tokens_to_copy=tokens_to_copy)
        shortest = 2 * tokens_to_copy + 2
        at_least(shortest, f"2 * tokens_to_copy + 2, with tokens_to_copy={tokens_to_copy}", seq_len=seq_len)
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)
        self.tokens_to_copy = tokens_to_copy

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        n, marker, blank = self.tokens_to_copy, self.vocab_size - 1, self.vocab_size - 2
        content = rng.integers(0, blank, (num, n))
        before = rng.integers(0, n, (num, self.seq_len - 2 * n - 1))  # the content token that a blank precedes
        cell = before + n * np.arange(num)[:, None]
        blanks = np.bincount(cell.ravel(), minlength=num * n).reshape(num, n)
        place = np.arange(n) + blanks.cumsum(axis=1)  # (N, n)
        inputs = np.full((num, self.seq_len), blank)
        np.put_along_axis(inputs, place, content, axis=1)
        inputs[:, -n - 1] = marker
        targets = np.full((num, self.seq_len), IGNORE)
        targets[:, -n:] = content
        return inputs, targets
