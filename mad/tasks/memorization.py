"""Memorization: learn a fixed map by heart.

MAD (arXiv 2403.17844). Id V - 1 is the insert token, of the others the first half are keys, the rest values; one random
one-to-one map from keys to values holds in training, in tests and in every run. A sequence is seq_len / 2 pairs of a
uniform key and the insert token, at which the key's value is scored. Only 256 training sequences.
"""

import numpy as np

from mad.tasks.base import IGNORE, Task, check_at_least, check_even, registry

MAP_SEED = 12345


@registry.register("memorization")
class Memorization(Task):
    """Options: vocab_size (at least 5), seq_len (even)."""

    num_train = 256

    def __init__(self, *, vocab_size: int = 256, seq_len: int = 32):
        check_at_least("vocab_size", vocab_size, 5)
        check_at_least("seq_len", seq_len, 2)
        check_even("seq_len", seq_len)
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.input_length = seq_len
        self.num_keys = (vocab_size - 1) // 2
        values = np.arange(self.num_keys, vocab_size - 1)
        self.values = np.random.default_rng(MAP_SEED).permutation(values)[: self.num_keys]  # of key 0, 1, ...

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        keys = rng.integers(0, self.num_keys, (num, self.seq_len // 2))
        inputs = np.full((num, self.seq_len), self.vocab_size - 1)
        targets = np.full_like(inputs, IGNORE)
        inputs[:, ::2] = keys
        targets[:, 1::2] = self.values[keys]
        return inputs, targets
