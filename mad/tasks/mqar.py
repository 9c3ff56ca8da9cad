"""Multi-query associative recall (MQAR): a context of pairs, then each key once more, at power-law gaps."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from mad import tasks
from mad.tasks import draw
from mad.tasks.base import IGNORE, Examples, Task, at_least, even, number


@tasks.register("mqar")
class MQAR(Task):
    """D pairs of a key and a value, then every key once as a query, whose value is asked for but never follows.

    Arora et al. 2023 (arXiv 2312.04927); Arora et al. 2024 (arXiv 2402.18668) for the mixture of lengths. Keys are
    drawn without replacement from 1 .. V/2 - 1, values from V/2 .. V - 1. The i-th key is queried 2 g_i tokens after
    the context; the gaps g are drawn one after the other without replacement from 0 .. (L - 2D)/2 - 1 with weights
    (g + 1)^(power - 1). All else is filler. Random filler may be an id that is a key: it is no query and has no
    target, as in the published code.

    Args:
        vocab_size: V; more than L.
        seq_len: L, even; at least 4D.
        num_kv: D.
        power: 1 draws gaps uniformly, less favours short ones.
        random_filler: filler is uniform over all ids; False: id 0.
        segments: [seq_len, num_kv, examples] of each part of training, in order, in place of seq_len and num_kv.
        test_segments: the same for a test; None: the lengths of segments, 1,000 examples each.
    """

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
        number(-50, 50, power=power)
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)
        self.num_kv, self.power, self.random_filler = (num_kv, float(power), random_filler)
        self.segments = _plain("segments", segments)
        self.test_segments = _plain("test_segments", test_segments)
        self.mixed = self.segments is not None or self.test_segments is not None
        self._segments = {"train": self.segments or [[seq_len, num_kv, self.num_train]]}
        self._segments["test"] = self.test_segments or (
            [[length, kv, 1_000] for length, kv, _ in self.segments]
            if self.segments
            else [[seq_len, num_kv, self.num_test]]
        )
        for segment in self._segments["train"] + self._segments["test"]:
            _check(vocab_size, segment[0], segment[1])
        self.num_train, self.num_test = (sum(s[2] for s in self._segments[split]) for split in ("train", "test"))

    @property
    def input_length(self) -> int:
        return max(segment[0] for split in self._segments.values() for segment in split)

    def parts(self, split: str) -> list[tuple[Task, int | None]]:
        single = super().parts(split)
        if not self.mixed:
            return single
        shared = {key: None if key.endswith("segments") else value for key, value in self.options.items()}
        segments = self._segments["train" if split == "train" else "test"]

        def part(length: int, num_kv: int) -> Task:
            options: dict[str, Any] = shared | {"seq_len": length, "num_kv": num_kv}
            return type(self)(**options)

        return [(part(length, num_kv), examples) for length, num_kv, examples in segments]

    def sample(self, num: int, seed: int = 0, split: str = "train") -> Examples:
        """As of any task; of a mixture `num` examples in proportion, part by part, shorter ones padded on the right."""
        if not self.mixed:
            return super().sample(num, seed, split)
        self.check_request(num, seed, split)
        inputs = torch.zeros(num, self.input_length, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE)
        parts = self.parts(split)
        ends = np.cumsum([examples or 0 for _, examples in parts])
        ends = np.rint(ends * num / ends[-1]).astype(int).tolist()
        for (part, _), start, end in zip(parts, [0, *ends], ends, strict=False):
            if end > start:
                examples = part.sample(end - start, seed, split)
                inputs[start:end, : part.input_length] = examples.inputs
                targets[start:end, : part.input_length] = examples.targets
        return Examples(inputs, targets)

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        context, num_keys, shape = (2 * self.num_kv, self.vocab_size // 2, (num, self.seq_len))
        keys = 1 + draw.distinct(rng, num, self.num_kv, num_keys - 1)  # (N, D)
        values = num_keys + draw.distinct(rng, num, self.num_kv, self.vocab_size - num_keys)
        # Whoever comes first among waiting times of these rates is drawn with these weights, and so on for the rest.
        gap = np.arange((self.seq_len - context) // 2)
        waiting = rng.standard_exponential((num, len(gap))) * (gap + 1.0) ** (1 - self.power)
        query = context + 2 * waiting.argsort(axis=1)[:, : self.num_kv]  # (N, D)
        inputs = rng.integers(0, self.vocab_size, shape) if self.random_filler else np.zeros(shape, dtype=np.int64)
        inputs[:, 0:context:2], inputs[:, 1:context:2] = keys, values
        np.put_along_axis(inputs, query, keys, axis=1)
        targets = np.full(shape, IGNORE)
        np.put_along_axis(targets, query, values, axis=1)
        return inputs, targets


def _plain(name: str, segments: Iterable[Iterable[int]] | None) -> list[list[int]] | None:
    """Segments as lists of whole numbers, whatever sequences they came in."""
    if segments is None:
        return None
    try:
        plain = [list(segment) for segment in segments]
    except TypeError:
        plain = []
    if not plain or any(len(s) != 3 or any(type(n) is not int or n < 1 for n in s) for s in plain):
        raise ValueError(f"{name}={segments!r} must be a list of [seq_len, num_kv, examples], whole numbers from 1")
    if len({(length, kv) for length, kv, _ in plain}) < len(plain):
        raise ValueError(f"{name}={segments!r} has a seq_len and num_kv twice, whose examples would be the same")
    return plain


def _check(vocab_size: int, seq_len: int, num_kv: int) -> None:
    at_least(4, "a key, a value and filler", vocab_size=vocab_size)
    at_least(1, num_kv=num_kv)
    num_keys = vocab_size // 2 - 1
    if num_kv > num_keys:
        raise ValueError(
            f"num_kv={num_kv} needs as many different keys, but vocab_size={vocab_size} has {num_keys}; expected "
            f"num_kv of at most {num_keys}, or vocab_size of at least {2 * num_kv + 2}"
        )
    at_least(4 * num_kv, f"4 * num_kv, with num_kv={num_kv}", seq_len=seq_len)
    even("seq_len", seq_len)
    at_least(seq_len + 1, f"more than seq_len={seq_len}", vocab_size=vocab_size)
