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
        column, starts = runs(drawn[rows])
        row, place = np.nonzero(~starts)
        drawn[rows[row], column[row, place]] = rng.integers(0, ids, len(row))
        rows = rows[~starts.all(axis=1)]
    return drawn


def motifs(rng: np.random.Generator, shape: tuple[int, ...], size: int, ids: int, dtype: np.dtype) -> list[np.ndarray]:
    """Tuples of `size` different numbers from [0, ids), all ordered tuples equally likely: `size` arrays of `shape`.

    The first steps of a Fisher-Yates shuffle of [0, ids), of which only the swapped places are followed. Cost grows
    with size^2: for short tuples, of which there are many.
    """
    swapped = [rng.integers(i, ids, shape, dtype=dtype) for i in range(size)]
    drawn = []
    for i, token in enumerate(swapped):
        for j in reversed(range(i)):  # what lies at the place of swap j is what lay at place j before
            token = np.where(token == swapped[j], dtype.type(j), token)
        drawn.append(token)
    return drawn


def pick(array: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """array (N, P) at columns (N, S), row by row: (N, S). A faster `np.take_along_axis`."""
    return array.take(columns + array.shape[1] * np.arange(len(array))[:, None])


def first_equal(codes: np.ndarray) -> np.ndarray:
    """The column where each entry's number occurs first in its row: (N, P) non-negative -> (N, P)."""
    column, starts = runs(codes)
    heads = np.flatnonzero(starts)
    first = np.empty_like(column)
    place = column + codes.shape[1] * np.arange(len(codes))[:, None]  # in a flat array: faster than rows and columns
    first.put(place, column.take(heads).repeat(np.diff(heads, append=codes.size)))
    return first


def runs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns in the order of each row's numbers, equal ones in ascending columns, and where a number starts: (N, P).

    Number and column are packed into one integer (they must fit in 63 bits), as a sort is far faster than an argsort.
    """
    bits = codes.shape[1].bit_length()
    packed = np.sort((codes.astype(np.int64) << bits) | np.arange(codes.shape[1]), axis=1)
    number, column = packed >> bits, packed & ((1 << bits) - 1)
    starts = np.ones(codes.shape, dtype=bool)
    starts[:, 1:] = number[:, 1:] != number[:, :-1]
    return column, starts
