"""Fuzzy in-context recall: in-context recall with keys and values of several tokens."""

import numpy as np

from mad import tasks
from mad.tasks import draw
from mad.tasks.base import IGNORE, Task, at_least


@tasks.register("fuzzy_in_context_recall")
class FuzzyInContextRecall(Task):
    """Keys and values are motifs: tuples of different tokens, at most k_motif and v_motif long, sizes uniform.

    Poli et al. 2024 (arXiv 2403.17844). The last id is padding; the first half of the others form keys, the rest
    values. A probe pair is drawn first, of k and v tokens. It is put into the stream at the first boundary of pairs
    at or after a place drawn from [0, L - 2 (k + v)), unless its key was drawn before; the stream ends as soon as
    it has L - (k + v) - (k_motif + v_motif) tokens, and then comes the probe once more. The L + 1 tokens, padded on
    the left, give inputs and next tokens. Training targets: every next token, padding too. In a test all keys are
    k_motif long, and the targets are the values of keys shown before. Published code leaves some probes unshown, so
    that no model can answer; here such a probe takes the place of the stream's last pair.

    Args:
        vocab_size: ids; at least 2 k_motif + 1 and 2 v_motif.
        seq_len: L, the length of the input; more than twice the longest pair.
        k_motif: most tokens of a key.
        v_motif: most tokens of a value.
    """

    def __init__(self, *, vocab_size: int = 16, seq_len: int = 128, k_motif: int = 3, v_motif: int = 3):
        at_least(3, "a key, a value and padding", vocab_size=vocab_size)
        at_least(1, k_motif=k_motif, v_motif=v_motif)
        self.num_keys = (vocab_size - 1) // 2  # ids of keys; those of values follow
        self.num_values = vocab_size - 1 - self.num_keys
        for name, motif, ids in (("k_motif", k_motif, self.num_keys), ("v_motif", v_motif, self.num_values)):
            if motif > ids:
                raise ValueError(
                    f"{name}={motif} needs as many different tokens, but vocab_size={vocab_size} leaves {ids}; "
                    f"expected {name} of at most {ids}, or vocab_size of at least {2 * motif + (name == 'k_motif')}"
                )
        at_least(2 * (k_motif + v_motif) + 1, "twice the longest pair, and one", seq_len=seq_len)
        if (self.num_keys + 1) ** k_motif * 2 * seq_len >= 2**63:  # see draw.runs
            raise ValueError(f"k_motif={k_motif} of {self.num_keys} ids is too many keys to count with 64 bits")
        super().__init__(vocab_size=vocab_size, seq_len=seq_len)
        self.k_motif, self.v_motif = k_motif, v_motif

    def generate(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        k_size, size, first, tokens = self._draw_pairs(rng, num, train)
        order, count = self._arrange(rng, size, first)  # (N, S), (N,)

        # Pair by pair: how many tokens, and where in `tokens`. Row by row they fill the right end of a sequence.
        width = self.k_motif + self.v_motif
        source = (first + first.shape[1] * np.arange(num)[:, None]) * width + self.k_motif - k_size
        source = draw.pick(source, order).ravel()
        size = np.where(np.arange(order.shape[1]) < count[:, None], draw.pick(size, order), 0)
        filled = np.arange(self.seq_len + 1) >= self.seq_len + 1 - size.sum(axis=1)[:, None]  # (N, L + 1)
        size = size.ravel()
        place = np.repeat(source - (size.cumsum() - size), size) + np.arange(size.sum())
        sequence = np.full(filled.shape, self.vocab_size - 1)
        sequence[filled] = tokens.take(place)
        inputs, targets = sequence[:, :-1], sequence[:, 1:]
        if not train:
            first = draw.pick(first, order)
            probe = first == 0
            known = np.where(probe, probe.cumsum(axis=1) > 1, first < order)  # its key was shown before
            scored = np.zeros(filled.shape, dtype=bool)
            scored[filled] = np.repeat(known.ravel(), size) & (place % width >= self.k_motif)
            targets = np.where(scored[:, 1:], targets, IGNORE)
        return inputs, targets

    def _draw_pairs(self, rng: np.random.Generator, num: int, train: bool) -> tuple[np.ndarray, ...]:
        """Enough pairs for the longest stream, the probe in column 0.

        Returns sizes of keys and of pairs (N, P); the column where a pair's key occurs first (N, P), which holds the
        pair, its value too; tokens (N, P, k_motif + v_motif), of which the key ends and the value starts at k_motif.
        """
        longest = self.seq_len - self.k_motif - self.v_motif  # no stream is longer
        low = 1 if train else self.k_motif
        k_size = rng.integers(low, self.k_motif + 1, (num, longest // (low + 1) + 3), dtype=np.int16)
        least = (k_size[:, 1:] + 1).cumsum(axis=1, dtype=np.int32)  # tokens, were all values of one token
        k_size = k_size[:, : 3 + (least < longest).sum(axis=1).max()]  # the stream, and the probe before and after it
        v_size = rng.integers(1, self.v_motif + 1, k_size.shape, dtype=np.int16)
        small = np.min_scalar_type(self.vocab_size)  # of tokens, of which there are many
        keys = draw.motifs(rng, k_size.shape, self.k_motif, self.num_keys, small)
        values = draw.motifs(rng, k_size.shape, self.v_motif, self.num_values, small)
        code = np.zeros(k_size.shape, dtype=np.int64)  # one number for a key and its size
        for i, token in enumerate(keys):
            code *= self.num_keys + 1
            code += (token + 1) * (k_size >= self.k_motif - i)
        first = draw.first_equal(code)
        tokens = np.stack([*keys, *(self.num_keys + token for token in values)], axis=-1)
        return k_size, draw.pick(k_size + v_size, first).astype(np.int64), first, tokens

    def _arrange(self, rng: np.random.Generator, size: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The order of the pairs in the sequence, (N, S) columns, and how many there are (N,), the last the probe."""
        num, slot = len(size), np.arange(size.shape[1] - 1)
        probe = size[:, 0]
        ends = self.seq_len - probe - self.k_motif - self.v_motif  # tokens at which the stream ends
        wanted = rng.integers(0, self.seq_len - 2 * probe)

        starts = size[:, 1:].cumsum(axis=1) - size[:, 1:]
        place = (starts < wanted[:, None]).sum(axis=1)[:, None]
        drawn = ((first[:, 1:] == 0) & (slot < place)).any(axis=1)
        place[drawn] = len(slot)  # nowhere: its key came by itself
        order = np.where(slot == place, 0, slot + 1 - (slot > place))  # (N, S)

        size = draw.pick(size, order)
        starts = size.cumsum(axis=1) - size
        count = (starts < ends[:, None]).sum(axis=1)
        shown = ((draw.pick(first, order) == 0) & (slot < count[:, None])).any(axis=1)
        order[~shown, count[~shown] - 1] = 0  # in place of the last pair
        order[np.arange(num), count] = 0
        return order, count + 1
