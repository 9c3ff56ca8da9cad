"""In-context recall: pairs of a key and its value; a key seen before has the value it had."""

import numpy as np

from mad import tasks
from mad.tasks import draw
from mad.tasks.base import IGNORE, Task, at_least, even


@tasks.register("in_context_recall")
class InContextRecall(Task):
    """k v k v ...: keys are the first half of the ids, values the second; a sequence's map is drawn with it.

    Poli et al. 2024 (arXiv 2403.17844), in its multi-query form. The last key occurred before. The input is the
    sequence without its last token. Training targets: every next token. Test targets: values of keys seen before.

    Args:
        vocab_size: ids; at least 2.
        seq_len: tokens of a sequence, even, at least 4.
    """

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 128):
        at_least(2, "one key and one value", vocab_size=vocab_size)
        check_pairs(seq_len)
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)

    @property
    def input_length(self) -> int:
        return self.seq_len - 1

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        shown = np.ones((num, self.seq_len // 2), dtype=bool)
        tokens, known = pairs(rng, shown, self.vocab_size)
        return next_tokens(tokens, known, train)


def check_pairs(seq_len: int) -> None:
    """Raise for lengths that are not two or more whole pairs."""
    at_least(4, "two pairs: the last repeats a key", seq_len=seq_len)
    even("seq_len", seq_len)


def pairs(rng: np.random.Generator, shown: np.ndarray, num_ids: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values from [0, num_ids) where `shown` (N, P) says; the last pair repeats one shown before it.

    Returns the tokens (N, 2P), arbitrary where nothing is shown, and which values are known from before (N, P).
    """
    num, length = shown.shape
    num_keys = num_ids // 2
    place = np.arange(length)
    keys = rng.integers(0, num_keys, shown.shape)  # (N, P)
    values = rng.integers(num_keys, num_ids, shown.shape)
    first = draw.first_equal(np.where(shown, keys, num_keys + place))  # what is not shown equals nothing
    fresh = shown & (first == place)
    first[:, -1] = draw.one_of(rng, fresh[:, :-1])
    known = shown & (first < place)
    tokens = np.empty((num, length, 2), dtype=np.int64)
    tokens[..., 0] = draw.pick(keys, first)
    tokens[..., 1] = draw.pick(values, first)  # a key keeps the value it was first shown with
    return tokens.reshape(num, 2 * length), known


def next_tokens(tokens: np.ndarray, known: np.ndarray, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets from tokens (N, 2P): the next token, in a test only where it is a known value (N, P)."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if not train:
        scored = np.zeros(targets.shape, dtype=bool)
        scored[:, 0::2] = known  # the token after a key
        targets = np.where(scored, targets, IGNORE)
    return inputs, targets
