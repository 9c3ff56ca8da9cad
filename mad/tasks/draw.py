"""Draws that NumPy does not offer for many sequences at once. Each works on rows, one row a sequence."""

import numpy as np


def one_of(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """For each row of a mask (N, P) the index of one of its true entries, uniformly. (N,); each row has one."""
    return np.where(mask, rng.random(mask.shape), -1.0).argmax(axis=1)


def distinct(rng: np.random.Generator, num: int, count: int, ids: int) -> np.ndarray:
    """`count` different numbers from [0, ids) in random order for each of `num` rows: (num, count).

    Draws with replacement and redraws what repeats an earlier entry of its row. No step depends on which number is
    which, so all ordered choices are equally likely. Takes few rounds as long as count is not close to ids.
    """
    drawn = rng.integers(0, ids, (num, count))  # (N, K)
    rows = np.arange(num)
    while len(rows):
        again = first_equal(drawn[rows]) != np.arange(count)
        drawn[rows[:, None], np.arange(count)] = np.where(again, rng.integers(0, ids, again.shape), drawn[rows])
        rows = rows[again.any(axis=1)]
    return drawn


def motifs(rng: np.random.Generator, shape: tuple[int, int], size: int, ids: int) -> list[np.ndarray]:
    """Tuples of `size` different numbers from [0, ids), all ordered tuples equally likely: `size` arrays of `shape`.

    The first steps of a Fisher-Yates shuffle of [0, ids), of which only the swapped places are followed. Cost grows
    with size^2: for short tuples, of which there are many.
    """
    swapped = [rng.integers(i, ids, shape, dtype=np.int32) for i in range(size)]
    drawn = []
    for i, token in enumerate(swapped):
        for j in reversed(range(i)):  # what lies at the place of swap j is what lay at place j before
            token = np.where(token == swapped[j], np.int32(j), token)
        drawn.append(token)
    return drawn


def first_equal(codes: np.ndarray) -> np.ndarray:
    """The column where each entry's number occurs first in its row: (N, P) non-negative -> (N, P).

    One sort of (number, column) packed into an integer, since sorting is far faster than argsort.
    """
    rows, columns = codes.shape
    bits = columns.bit_length()
    packed = np.sort((codes.astype(np.int64) << bits) | np.arange(columns), axis=1)
    number, column = packed >> bits, packed & ((1 << bits) - 1)
    starts = np.ones(codes.shape, dtype=bool)  # of a run of equal numbers, whose columns ascend
    starts[:, 1:] = number[:, 1:] != number[:, :-1]
    starts = np.flatnonzero(starts)
    first = np.empty_like(column)
    place = column + columns * np.arange(rows)[:, None]  # in a flat array: twice as fast as rows and columns
    first.put(place, column.take(starts).repeat(np.diff(starts, append=codes.size)))
    return first
