"""In-context recall: say the value that belongs to a key seen before in the same sequence.

MAD (arXiv 2403.17844). A sequence is seq_len / 2 pairs: keys are ids below V / 2, values the ids above; a key keeps, to
the end of its sequence, the value it got when it first came. The last pair repeats an earlier key. A model sees all
tokens but the last. Training scores every next token; a test scores the values of keys that came before.
"""

import numpy as np

from mad.tasks.base import IGNORE, Task, check_at_least, check_even, registry


@registry.register("in_context_recall")
class InContextRecall(Task):
    """Options: vocab_size (at least 4), seq_len (even, at least 4)."""

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 128):
        check_at_least("vocab_size", vocab_size, 4)
        check_at_least("seq_len", seq_len, 4)
        check_even("seq_len", seq_len)
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.input_length = seq_len - 1

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        silent = np.zeros((num, self.seq_len // 2 - 1), dtype=bool)
        tokens, repeats = pairs(rng, self.vocab_size, silent)
        return next_token(tokens, repeats if test else None)


def pairs(rng: np.random.Generator, vocab_size: int, silent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key-value pairs with a value a key, one pair more than `silent` (N, P - 1) has columns.

    A pair where `silent` is true does not count as shown: neither can the last pair repeat it, nor a later one be a
    repeat of it.

    Returns:
        tokens (N, 2 P), and whether the key of each pair was shown before, (N, P).
    """
    num, first_pairs = silent.shape
    num_keys = vocab_size // 2
    first_key = num_keys * np.arange(num, dtype=np.int32)[:, None]  # of each sequence, in the flattened tables
    keys = rng.integers(0, num_keys, (num, first_pairs + 1), dtype=np.int32) + first_key
    values = rng.integers(num_keys, vocab_size, num * num_keys, dtype=np.int32)  # what each key would get
    shown = np.zeros(num * num_keys, dtype=bool)
    repeats = np.ones((first_pairs + 1, num), dtype=bool)
    for p, (column, audible) in enumerate(zip(keys.T[:-1].copy(), ~silent.T, strict=True)):
        repeats[p] = shown[column]
        shown[column] |= audible
    among = rng.random((num, num_keys), dtype=np.float32) * shown.reshape(num, num_keys)
    keys[:, -1] = among.argmax(1) + first_key[:, 0]  # one of the keys shown, each as likely
    tokens = np.stack([keys - first_key, values[keys]], axis=-1).reshape(num, -1)
    return tokens, repeats.T & ~np.pad(silent, ((0, 0), (0, 1)))


def next_token(tokens: np.ndarray, scored_pairs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, (N, L - 1) each, of tokens (N, L); the targets are every next token, or, with
    `scored_pairs` (N, L / 2), the values of those pairs alone."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    if scored_pairs is not None:
        targets[:, 1::2] = IGNORE
        targets[:, ::2][~scored_pairs] = IGNORE
    return inputs, targets
