"""Memorization: learn one fixed map from keys to values by heart."""

import numpy as np

from mad import tasks
from mad.tasks.base import IGNORE, Task, at_least, even

MAP_SEED = 12345  # of the map, which is the same in every split and every run


@tasks.register("memorization")
class Memorization(Task):
    """Pairs of a key and an insert token, at which the key's value is asked for. Values never occur in the input.

    Poli et al. 2024 (arXiv 2403.17844). The last id is the insert token; the first half of the others are keys, the
    rest values. The map is one-to-one. Training has 256 sequences only.

    Args:
        vocab_size: ids; at least 3.
        seq_len: tokens of a sequence, even.
    """

    num_train = 256

    def __init__(self, *, vocab_size: int = 256, seq_len: int = 32):
        at_least(3, "a key, a value and the insert token", vocab_size=vocab_size)
        at_least(2, "one pair", seq_len=seq_len)
        even("seq_len", seq_len)
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)

    def value_of(self) -> np.ndarray:
        """The map: the value of each key, (K,)."""
        num_keys = (self.vocab_size - 1) // 2
        rng = np.random.default_rng([MAP_SEED, self.vocab_size])
        return rng.permutation(np.arange(num_keys, self.vocab_size - 1))[:num_keys]

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        value_of = self.value_of()
        keys = rng.integers(0, len(value_of), (num, self.seq_len // 2))
        inputs = np.full((num, self.seq_len), self.vocab_size - 1)
        inputs[:, 0::2] = keys
        targets = np.full((num, self.seq_len), IGNORE)
        targets[:, 1::2] = value_of[keys]
        return inputs, targets
