"""How a transform that keeps few frequencies is cut up (`lowpass.py`), and the constants that it multiplies with."""

import math
from functools import cache
from typing import NamedTuple

import torch

from kernels.fft_conv.reference import spectral_points
from kernels.tiles import bucket

ROWS, LEAST = 16, 32  # that a program has at once, and its fewest columns: of square tiles, all warps do all the work
BLOCK = {2: 64, 4: 32}  # columns that it has at most, by the bytes of what is multiplied
TILE = 8192  # tokens that it can hold from row to row
# Of `pays`. An SM of an H100 does 128 instructions a cycle, and 1,024 multiply-adds of products whose second operand,
# in shared memory, serves 16 rows at a time.
TWIDDLE, READ = 80, 60
SINGLE = 6  # times as much do three TF32 products at half the rate cost
FFT = 5500  # what torch's FFTs take one way: 9.5 ms for 64 x 768 x 4,096 tokens on an H100


class Plan(NamedTuple):
    """How a transform of `points` that keeps the frequencies below `keep` is computed, and how its spectra lie in
    memory: (re | im, rows, columns), of row a and column c the frequency a + Q (c - negative)."""

    points: int
    keep: int
    Q: int
    rows: int
    columns: int
    negative: int  # columns

    @property
    def P(self) -> int:
        """Rows of a tile of tokens. Half of Q, as the sequence is half of the points."""
        return max(16, self.Q // 2)

    @property
    def M(self) -> int:
        return self.points // self.Q

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return bucket(self.columns, LEAST, 1 << 30)


@cache
def plan(length: int, keep: int) -> Plan:
    """Columns of both signs reach all |f| < keep from the rows up to Q / 2; where those below `keep` are fewer, they do
    with one column. keep: at most half the points."""
    points = spectral_points(length)
    Q = min(points, max(32, min(128, points // LEAST)))
    negative = (keep - 1 + Q // 2) // Q
    needed = Q // 2 + 1 if negative else keep
    return Plan(points, keep, Q, -(-needed // ROWS) * ROWS, negative + (keep - 1) // Q + 1, negative)


def pays(u: torch.Tensor, keep: int) -> bool:
    """Whether the kernel is faster than torch on a GPU: by arithmetic, which four timed shapes do not contradict.

    A token takes one way, in multiply-adds, 2 rows for the first product, 4 rows columns / P for the second, TWIDDLE
    for each of rows / P numbers that are twiddled and rounded, and READ for itself. Blocks of columns start anew, and
    where a program cannot hold its sequence, blocks of rows do. For 2,048 of 8,192 frequencies that is 480 (one product
    with all their cosines would be 2 keep: 4,096), for 64 of them 396.
    """
    p = plan(u.shape[-1], keep)
    product = SINGLE if u.dtype == torch.float32 else 1
    blocks = max(1, p.width // BLOCK[2])
    again = blocks * p.rows / ROWS if p.points > 2 * TILE else 1
    work = blocks * (2 * product + TWIDDLE / p.P) + 4 * product * p.width / p.P
    return p.rows * work + READ * again <= FFT


@cache
def tables(p: Plan, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosines and sines: (2, a, p) of the first product, (2, a, i) of the twiddle, (2, i, c) of the second."""
    a, i = torch.arange(p.rows), torch.arange(max(p.M, LEAST))
    return (
        circle(torch.outer(a, torch.arange(p.P)), p.Q).to(device, dtype),
        circle(torch.outer(a, i), p.points).to(device, dtype),
        circle(torch.outer(i, torch.arange(p.width) - p.negative), p.M).to(device, dtype),
    )


def circle(turns: torch.Tensor, parts: int) -> torch.Tensor:
    """Cosines and sines of integers of `parts` of a turn, float64."""
    angle = (turns % parts).double() * (2 * math.pi / parts)
    return torch.stack([angle.cos(), angle.sin()])


@cache
def weights(p: Plan, device: torch.device) -> torch.Tensor:
    """(rows, columns), fp32: what a frequency weighs on the way back. Each stands for its mirror image, too, and is to
    count once: rows 0 and Q / 2 hold their own mirror images."""
    a = torch.arange(p.rows).unsqueeze(1)
    f = a + p.Q * (torch.arange(p.columns) - p.negative)
    counts = (f.abs() < p.keep) & (a <= p.Q // 2) & ((f >= 0) | (a % max(1, p.Q // 2) > 0))
    return (torch.where(f == 0, 1.0, 2.0) * counts / p.points).to(device)
