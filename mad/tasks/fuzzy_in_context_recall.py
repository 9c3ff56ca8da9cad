"""Fuzzy in-context recall: keys and values are motifs of several tokens.

MAD (arXiv 2403.17844). A motif is 1 to k_motif (keys) or v_motif (values) tokens without repetition; id V - 1 is padding,
of the others the first half forms keys. Key sizes are uniform in training and always k_motif in a test, value sizes are
uniform in both. A key keeps its value. The last pair, the probe, is shown earlier too: at the first pair boundary from
an index drawn uniformly from [0, L - 2 (k + v)) on (k and v the probe's sizes), unless its key was drawn before that; if
the stream ends first, in place of its last pair. (In published data 2.5 % of the test probes were never shown.) Pairs
are added while the stream is shorter than L - (k + v) - (k_motif + v_motif); padding comes before it. Training scores
every next token; a test scores the values of keys shown before.

The value of a key is a hash of the key and of a number drawn for the sequence: no table of motifs is ever built, which
is what makes published generators take hours.
"""

from collections.abc import Iterable

import numpy as np

from mad.tasks.base import IGNORE, Task, check_at_least, registry


@registry.register("fuzzy_in_context_recall")
class FuzzyInContextRecall(Task):
    """Options: vocab_size, seq_len, k_motif, v_motif (largest motif sizes)."""

    chunk = 256  # its working arrays are several times the tokens; these stay in the caches

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 128, k_motif: int = 3, v_motif: int = 3):
        check_at_least("k_motif", k_motif, 1)
        check_at_least("v_motif", v_motif, 1)
        least = 1 + max(2 * k_motif, 2 * v_motif - 1)  # padding, and halves that hold a motif each
        if vocab_size < least:
            raise ValueError(
                f"vocab_size={vocab_size} leaves too few tokens for motifs of k_motif={k_motif} and v_motif={v_motif} "
                f"different ones; expected at least {least}"
            )
        if vocab_size > 2**15:
            raise ValueError(f"vocab_size must be at most {2**15}, got {vocab_size}")
        check_at_least("seq_len", seq_len, 3 * (k_motif + v_motif))
        self.vocab_size, self.seq_len, self.k_motif, self.v_motif = vocab_size, seq_len, k_motif, v_motif
        self.num_keys = (vocab_size - 1) // 2
        self.input_length = seq_len

    def generate(self, rng: np.random.Generator, num: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        salt = rng.integers(0, 2**63, (num, 1), dtype=np.uint64)
        probe = self.draw(rng, salt, 1, test)
        end = self.seq_len - probe.size[:, 0] - (self.k_motif + self.v_motif)  # pairs start before it
        mean_size = (self.k_motif if test else (self.k_motif + 1) / 2) + (self.v_motif + 1) / 2
        pairs = self.draw(rng, salt, int(1.1 * self.seq_len / mean_size) + 8, test)
        while (pairs.size[:, :-1].sum(1) < end).any():  # the last column is the probe's
            pairs = pairs.join(self.draw(rng, salt, 16, test))
        count = self.show(rng, pairs, probe, end)
        pairs.put(slice(None), count, probe)  # ... and ask for it last

        most = count.max() + 1
        places = np.arange(self.k_motif + self.v_motif)
        is_value = places >= self.k_motif
        held = np.concatenate([pairs.keys, pairs.values], axis=-1)[:, :most]
        kept = (held >= 0) & (np.arange(most) <= count[:, None])[..., None]  # (N, P, places): the stream, in order
        stream = np.full((num, self.seq_len + 1), self.vocab_size - 1, dtype=np.int16)
        filled = np.arange(self.seq_len + 1) >= self.seq_len + 1 - kept.sum((1, 2))[:, None]
        stream[filled] = held[kept]
        targets = stream[:, 1:].copy()
        if test:
            scored = np.zeros(stream.shape, dtype=bool)
            shown = shown_before(pairs.key_id[:, :most])[..., None] & is_value
            scored[filled] = shown[kept]
            targets[~scored[:, 1:]] = IGNORE
        return stream[:, :-1], targets

    def draw(self, rng: np.random.Generator, salt: np.ndarray, num_pairs: int, test: bool) -> "Pairs":
        """Pairs with uniform keys, (N, num_pairs), and the values that belong to them in each sequence."""
        shape = (len(salt), num_pairs)
        key_size = np.full(shape, self.k_motif, dtype=np.int16) if test else rng.integers(1, self.k_motif + 1, shape, dtype=np.int16)
        draws = (rng.integers(0, self.num_keys - i, shape, dtype=np.int16) for i in range(self.k_motif))
        keys = distinct(draws, key_size)
        key_id = np.zeros(shape, dtype=np.uint64)
        for token in np.moveaxis(keys, -1, 0):  # an unused place counts as 0, a token as one more than itself
            key_id = key_id * np.uint64(self.num_keys + 1) + (token + 1).astype(np.uint64)
        state = mix(key_id ^ mix(salt))
        value_size = below(state, self.v_motif) + 1
        num_values = self.vocab_size - 1 - self.num_keys
        draws = (below(mix(state + np.uint64(i + 1)), num_values - i) for i in range(self.v_motif))
        values = distinct(draws, value_size)
        values[values >= 0] += self.num_keys
        return Pairs(keys, values, key_size + value_size, key_id)

    def show(self, rng: np.random.Generator, pairs: "Pairs", probe: "Pairs", end: np.ndarray) -> np.ndarray:
        """Put the probe among the pairs; returns how many of them the stream holds, (N,).

        The pairs are independent, so the probe may take the place of the one that would begin at the boundary.
        """
        wanted = rng.integers(0, self.seq_len - 2 * probe.size[:, 0])
        start = np.cumsum(pairs.size, 1) - pairs.size  # where each pair begins
        boundary = np.where(start[:, -1] < wanted, start.shape[1], (start >= wanted[:, None]).argmax(1))
        drawn = pairs.key_id == probe.key_id
        early = np.where(drawn.any(1), drawn.argmax(1), start.shape[1]) < boundary
        put = np.flatnonzero(~early & (boundary < start.shape[1]))
        pairs.put(put, boundary[put], probe)

        start = np.cumsum(pairs.size, 1) - pairs.size
        count = (start < end[:, None]).sum(1)
        drawn = (pairs.key_id == probe.key_id) & (np.arange(start.shape[1]) < count[:, None])
        missing = np.flatnonzero(~drawn.any(1))
        pairs.put(missing, count[missing] - 1, probe)
        return count


class Pairs:
    """Key and value motifs (N, P, motif), -1 where a motif is shorter; pairs' sizes and the keys' numbers (N, P)."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, size: np.ndarray, key_id: np.ndarray):
        self.fields = self.keys, self.values, self.size, self.key_id = keys, values, size, key_id

    def join(self, other: "Pairs") -> "Pairs":
        return Pairs(*(np.concatenate(two, axis=1) for two in zip(self.fields, other.fields, strict=True)))

    def put(self, rows: np.ndarray | slice, columns: np.ndarray, probe: "Pairs") -> None:
        """Row by row, the probe's only pair into a column."""
        rows = np.arange(len(self.size))[rows]
        for mine, its in zip(self.fields, probe.fields, strict=True):
            mine[rows, columns] = its[rows, 0]


def distinct(draws: Iterable[np.ndarray], size: np.ndarray) -> np.ndarray:
    """Tuples without repetition, (..., m): draw i, uniform below n - i, picks among the tokens not yet used.

    Places from `size` (...) on hold -1.
    """
    chosen: list[np.ndarray] = []
    ordered: list[np.ndarray] = []  # the same tokens, smallest first
    for token in draws:
        for used in ordered:
            token = token + (token >= used)
        chosen.append(token)
        for i, used in enumerate(ordered):
            ordered[i], token = np.minimum(used, token), np.maximum(used, token)
        ordered.append(token)
    return np.stack([np.where(i < size, token, -1) for i, token in enumerate(chosen)], axis=-1)


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64: each input bit flips each output bit with probability one half."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def below(bits: np.ndarray, n: int) -> np.ndarray:
    """Uniform numbers below n, int16, from the upper 32 of 64 random bits."""
    return (((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).astype(np.int16)


def shown_before(ids: np.ndarray) -> np.ndarray:
    """(N, P) -> whether the same number stands earlier in the row."""
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, 1)
    again = np.zeros(ids.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = np.empty_like(again)
    np.put_along_axis(result, order, again, 1)
    return result
