"""Selective copying: repeat the content tokens, in order, without the blanks between them.

MAD (arXiv 2403.17844). Id V - 1 is the copy marker, V - 2 the blank, the rest content. tokens_to_copy content tokens,
seq_len - 2 tokens_to_copy - 1 blanks, each inserted before a uniformly drawn one of them; the marker; as many blanks as
content tokens, at which the content is scored, in training and in a test.
"""

import numpy as np

from mad.tasks.base import IGNORE, Task, check_at_least, registry


@registry.register("selective_copying")
class SelectiveCopying(Task):
    """Options: vocab_size (at least 4), seq_len (above 2 tokens_to_copy + 1), tokens_to_copy."""

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 256, tokens_to_copy: int = 16):
        check_at_least("vocab_size", vocab_size, 4)
        check_at_least("tokens_to_copy", tokens_to_copy, 1)
        check_at_least("seq_len", seq_len, 4)
        if seq_len <= 2 * tokens_to_copy + 1:
            raise ValueError(
                f"seq_len={seq_len} is too short to copy {tokens_to_copy} tokens; expected at least "
                f"{2 * tokens_to_copy + 2}, or tokens_to_copy of at most {(seq_len - 2) // 2}"
            )
        self.vocab_size, self.seq_len, self.tokens_to_copy = vocab_size, seq_len, tokens_to_copy
        self.input_length = seq_len

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        marker, blank = self.vocab_size - 1, self.vocab_size - 2
        copied = self.tokens_to_copy
        content = rng.integers(0, blank, (num, copied))
        blanks_before = rng.multinomial(self.seq_len - 2 * copied - 1, np.full(copied, 1 / copied), num)
        inputs = np.full((num, self.seq_len), blank)
        np.put_along_axis(inputs, np.cumsum(blanks_before, 1) + np.arange(copied), content, 1)
        inputs[:, -copied - 1] = marker
        targets = np.full_like(inputs, IGNORE)
        targets[:, -copied:] = content
        return inputs, targets
