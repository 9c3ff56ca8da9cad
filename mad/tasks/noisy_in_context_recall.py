"""Noisy in-context recall: recall with pairs of noise tokens between.

MAD (arXiv 2403.17844). The last noise_vocab ids are noise, keys and values share what is left. Each pair but the last is
noise, two uniform noise tokens, with probability frac_noise, save one uniformly chosen pair that never is. Scored as
in-context recall is.
"""

import numpy as np

from mad.tasks.base import Task, check_at_least, check_even, check_fraction, registry
from mad.tasks.in_context_recall import next_token, pairs


@registry.register("noisy_in_context_recall")
class NoisyInContextRecall(Task):
    """Options: vocab_size (noise included; at least noise_vocab + 4), seq_len (even), noise_vocab, frac_noise."""

    def __init__(self, *, vocab_size: int = 32, seq_len: int = 128, noise_vocab: int = 16, frac_noise: float = 0.2):
        check_at_least("noise_vocab", noise_vocab, 1)
        check_at_least("vocab_size", vocab_size, noise_vocab + 4)
        check_at_least("seq_len", seq_len, 4)
        check_even("seq_len", seq_len)
        check_fraction("frac_noise", frac_noise)
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.noise_vocab, self.frac_noise = noise_vocab, frac_noise
        self.input_length = seq_len - 1

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        free = self.seq_len // 2 - 1
        noise = rng.random((num, free)) < self.frac_noise
        noise[np.arange(num), rng.integers(0, free, num)] = False
        content = self.vocab_size - self.noise_vocab
        tokens, repeats = pairs(rng, content, noise)
        noisy = np.repeat(np.pad(noise, ((0, 0), (0, 1))), 2, axis=1)  # (N, L)
        tokens[noisy] = rng.integers(content, self.vocab_size, int(noisy.sum()))
        return next_token(tokens, repeats if test else None)
