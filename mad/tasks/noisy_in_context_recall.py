"""Noisy in-context recall: in-context recall with pairs of noise between the pairs that matter."""

import numpy as np

from mad import tasks
from mad.tasks.base import Task, at_least, number
from mad.tasks.in_context_recall import check_pairs, next_tokens, pairs


@tasks.register("noisy_in_context_recall")
class NoisyInContextRecall(Task):
    """In-context recall, where each pair but the last is two noise tokens with probability `frac_noise`.

    Poli et al. 2024 (arXiv 2403.17844). The last `noise_vocab` ids are noise, keys and values share the others. One
    pair, chosen uniformly among all but the last, is never noise. Targets as in in-context recall: training has
    every next token, the noise too; a test has the values of keys shown before.

    Args:
        vocab_size: ids, noise among them.
        seq_len: tokens of a sequence, even, at least 4.
        noise_vocab: ids that are noise.
        frac_noise: probability of a pair to be noise, 0 to 1.
    """

    def __init__(self, *, vocab_size: int = 32, seq_len: int = 128, noise_vocab: int = 16, frac_noise: float = 0.2):
        at_least(1, noise_vocab=noise_vocab)
        at_least(noise_vocab + 2, "noise_vocab, one key and one value", vocab_size=vocab_size)
        check_pairs(seq_len)
        number(0, 1, frac_noise=frac_noise)
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)
        self.noise_vocab, self.frac_noise = noise_vocab, float(frac_noise)

    @property
    def input_length(self) -> int:
        return self.seq_len - 1

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        length = self.seq_len // 2
        shown = rng.random((num, length)) >= self.frac_noise  # (N, P)
        shown[np.arange(num), rng.integers(0, length - 1, num)] = True
        shown[:, -1] = True
        num_ids = self.vocab_size - self.noise_vocab
        tokens, known = pairs(rng, shown, num_ids)
        noise = rng.integers(num_ids, self.vocab_size, tokens.shape)
        return next_tokens(np.where(shown.repeat(2, axis=1), tokens, noise), known, train)
