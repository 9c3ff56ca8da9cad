"""Multi-query associative recall: keys and values first, then every key once more, asking for its value.

Zoology (arXiv 2312.04927), BASED (arXiv 2402.18668). The first 2 num_kv tokens are pairs of different keys (ids 1 to
V / 2 - 1) and different values (from V / 2). Each key comes once more, 2 g tokens after the pairs, where the gaps g are
drawn without replacement with weights (g + 1)^(power - 1). All else is filler, uniform over the vocabulary or zero. The
value is scored at the key's second place, and never stands there or after it.

`segments`, a list of [seq_len, num_kv, examples], makes training data of several lengths, in that order, and
`test_segments` test data; batches and scores are kept apart by segment.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mad.tasks.base import IGNORE, Examples, Task, check_at_least, check_split, registry


@registry.register("mqar")
class MQAR(Task):
    """Options: vocab_size (even, above seq_len), seq_len (even, at least 4 num_kv), num_kv, power, random_filler,
    segments, test_segments."""

    num_train, num_test = 100_000, 3_000

    def __init__(
        self,
        *,
        vocab_size: int = 8192,
        seq_len: int = 64,
        num_kv: int = 4,
        power: float = 0.01,
        random_filler: bool = True,
        segments: Sequence[Sequence[int]] | None = None,
        test_segments: Sequence[Sequence[int]] | None = None,
    ):
        self.vocab_size, self.seq_len, self.num_kv = vocab_size, seq_len, num_kv
        self.power, self.random_filler = power, random_filler
        self.segments, self.test_segments = segments, test_segments
        if vocab_size % 2:
            raise ValueError(f"vocab_size must be even (keys and values), got {vocab_size}")
        if segments is None and test_segments is None:
            self.check(seq_len, num_kv)
            self.input_length = seq_len
            return
        segments = self.segments = [[seq_len, num_kv, self.num_train]] if segments is None else segments
        tests = self.test_segments = [[n, d, self.num_test] for n, d, _ in segments] if not test_segments else test_segments
        for segment in [*segments, *tests]:
            if len(segment) != 3:
                raise ValueError(f"a segment is [seq_len, num_kv, examples], got {list(segment)}")
            self.check(segment[0], segment[1])
            check_at_least("examples of a segment", segment[2], 1)
        self.num_train, self.num_test = sum(s[2] for s in segments), sum(s[2] for s in tests)
        self.input_length = max(s[0] for s in [*segments, *tests])

    def check(self, seq_len: int, num_kv: int) -> None:
        check_at_least("num_kv", num_kv, 1)
        check_at_least("seq_len", seq_len, 4)
        if seq_len % 2:
            raise ValueError(f"seq_len must be even, got {seq_len}; the nearest are {seq_len - 1} and {seq_len + 1}")
        if seq_len < 4 * num_kv:
            raise ValueError(
                f"seq_len={seq_len} is too short for num_kv={num_kv} pairs and their queries; expected at least "
                f"{4 * num_kv}, or num_kv of at most {seq_len // 4}"
            )
        if self.vocab_size <= seq_len:
            raise ValueError(f"vocab_size={self.vocab_size} must be above seq_len={seq_len}")

    def parts(self, split: str) -> list[tuple[Task, int | None]]:
        check_split(split)
        segments = self.segments if split == "train" else self.test_segments
        return [(self, None)] if segments is None else [(self.single(n, d), num) for n, d, num in segments]

    def single(self, seq_len: int, num_kv: int) -> "MQAR":
        """This task at one length."""
        task = MQAR(
            vocab_size=self.vocab_size,
            seq_len=seq_len,
            num_kv=num_kv,
            power=self.power,
            random_filler=self.random_filler,
        )
        task.name = self.name
        return task

    def sample(self, num: int, seed: int = 0, split: str = "train") -> Examples:
        """As of any task; segments share `num` in proportion and are padded on the right, with 0 and no target."""
        parts = self.parts(split)
        if parts[0][0] is self:
            return super().sample(num, seed, split)
        check_at_least("num", num, len(parts))
        edges = np.round(np.cumsum([0, *(n or 0 for _, n in parts)]) / sum(n or 0 for _, n in parts) * num).astype(int)
        inputs = torch.zeros(num, self.input_length, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE)
        for (part, _), start, stop in zip(parts, edges[:-1], edges[1:], strict=True):
            if stop > start:
                examples = part.sample(int(stop - start), seed, split)
                inputs[start:stop, : part.input_length] = examples.inputs
                targets[start:stop, : part.input_length] = examples.targets
        return Examples(inputs, targets)

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        half, pairs = self.vocab_size // 2, self.num_kv
        keys = 1 + without_replacement(rng, num, pairs, half - 1)
        values = half + without_replacement(rng, num, pairs, self.vocab_size - half)
        shape = (num, self.seq_len)
        inputs = rng.integers(0, self.vocab_size, shape) if self.random_filler else np.zeros(shape, dtype=np.int64)
        inputs[:, : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
        places = 2 * pairs + 2 * self.gaps(rng, num)
        np.put_along_axis(inputs, places, keys, 1)
        targets = np.full(shape, IGNORE)
        np.put_along_axis(targets, places, values, 1)
        return inputs, targets

    def gaps(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """(num, num_kv) different gaps. The largest of exponential draws over the weights, in order, are what drawing
        one after the other without replacement gives."""
        count = (self.seq_len - 2 * self.num_kv) // 2
        weights = np.arange(1, count + 1) ** (self.power - 1)
        return np.argsort(rng.standard_exponential((num, count)) / weights, axis=1)[:, : self.num_kv]


def without_replacement(rng: np.random.Generator, num: int, size: int, population: int) -> np.ndarray:
    """(num, size) different numbers below `population` in each row, all ordered choices equally likely.

    A number that the row has already is drawn again, column by column for all rows at once.
    """
    rows = np.arange(num)
    chosen = np.empty((num, size), dtype=np.int64)
    taken = np.zeros((num, population), dtype=bool)
    for column in range(size):
        pending = rows
        while len(pending):
            draw = rng.integers(0, population, len(pending))
            free = ~taken[pending, draw]
            accepted = pending[free]
            chosen[accepted, column] = draw[free]
            taken[accepted, draw[free]] = True
            pending = pending[~free]
    return chosen
