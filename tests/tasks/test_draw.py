"""Draws for many sequences at once: right by exhaustive counts, since the tasks' distributions stand on them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mad.tasks import draw


@settings(deadline=None, derandomize=True)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 17)), elements=st.integers(0, 5)))
def test_first_equal(codes):
    want = [[list(row).index(x) for x in row] for row in codes]
    assert draw.first_equal(codes).tolist() == want


def test_pick_is_take_along_axis():
    rng = np.random.default_rng(0)
    array, columns = rng.random((7, 5)), rng.integers(0, 5, (7, 9))
    assert np.array_equal(draw.pick(array, columns), np.take_along_axis(array, columns, axis=1))


def all_equally_likely(tuples, ids):
    """Each of the ordered choices without repetition occurs, and as often as another, to six standard errors."""
    found, counts = np.unique(tuples, axis=0, return_counts=True)
    size = tuples.shape[1]
    possible = int(np.prod(np.arange(ids, ids - size, -1)))
    assert len(found) == possible and (np.sort(found, axis=1)[:, 1:] != np.sort(found, axis=1)[:, :-1]).all()
    mean = len(tuples) / possible
    assert (np.abs(counts - mean) < 6 * mean**0.5).all()


def test_distinct_and_motifs_are_uniform_over_ordered_choices():
    for size, ids in ((1, 3), (2, 4), (3, 5), (4, 4)):
        all_equally_likely(draw.distinct(np.random.default_rng(size), 100_000, size, ids), ids)
        columns = draw.motifs(np.random.default_rng(size), (1000, 100), size, ids, np.dtype(np.uint8))
        all_equally_likely(np.stack(columns, axis=-1).reshape(-1, size), ids)


def test_distinct_with_many_ids():
    drawn = draw.distinct(np.random.default_rng(0), 500, 256, 600)
    assert drawn.min() == 0 and drawn.max() == 599
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()


def test_one_of_takes_true_entries_alike():
    mask = np.tile([False, True, True, False, True], (30_000, 1))
    counts = np.bincount(draw.one_of(np.random.default_rng(0), mask), minlength=5)
    assert counts[0] == counts[3] == 0
    assert (np.abs(counts[[1, 2, 4]] - 10_000) < 500).all()
