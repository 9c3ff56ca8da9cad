"""Compression: a whole sequence in one vector."""

import numpy as np

from mad import tasks
from mad.tasks.base import Task, at_least


@tasks.register("compression")
class Compression(Task):
    """Uniform content, then an aggregation token, the last id; an auto-encoder reproduces the input from its vector.

    Poli et al. 2024 (arXiv 2403.17844). Every position is a target, that of the aggregation token too.

    Args:
        vocab_size: ids; at least 2.
        seq_len: tokens of a sequence, the aggregation token included; at least 2.
    """

    head = "autoencoder"

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 32):
        at_least(2, "content and the aggregation token", vocab_size=vocab_size)
        at_least(2, "content and the aggregation token", seq_len=seq_len)
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        inputs = rng.integers(0, self.vocab_size - 1, (num, self.seq_len))
        inputs[:, -1] = self.vocab_size - 1
        return inputs, inputs
