"""Compression: an auto-encoder's stack must put a whole sequence into its last position's vector.

MAD (arXiv 2403.17844). seq_len - 1 uniform content tokens and, last, the aggregation token V - 1; the target is the input
at every position, read from that one vector.
"""

import numpy as np

from mad.tasks.base import Task, check_at_least, registry


@registry.register("compression")
class Compression(Task):
    """Options: vocab_size (at least 3), seq_len (at least 2)."""

    head = "autoencoder"

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 32):
        check_at_least("vocab_size", vocab_size, 3)
        check_at_least("seq_len", seq_len, 2)
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.input_length = seq_len

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        inputs = rng.integers(0, self.vocab_size - 1, (num, self.seq_len))
        inputs[:, -1] = self.vocab_size - 1
        return inputs, inputs
