"""AdamW in pieces against torch's own, bit for bit."""

import copy

import pytest
import torch

from mad.training import optimiser
from mad.training.optimiser import AdamW


def parameters(seed=0):
    torch.manual_seed(seed)
    shapes = [(5,), (64, 48), (3, 4, 7), (40, 100)]
    found = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    return [*found, torch.nn.Parameter(torch.randn(48, 64).t())]  # one that is not contiguous


def walk(adamw, ours, steps, first=0):
    for step in range(first, first + steps):
        adamw.zero_grad()
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(ours):
            if i != 2:  # one that no loss depends on
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
        adamw.step()


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(optimiser, "piece_size", lambda parameters: 512)


def test_equals_torchs_adamw(small_pieces):
    ours, theirs, lr = parameters(), parameters(), torch.tensor(1e-2)
    mine, other = AdamW(ours, lr, 0.1), torch.optim.AdamW(theirs, lr=lr, weight_decay=0.1, fused=True)
    assert len(mine.tensors()) == 0 and [len(pieces) for pieces in mine.pieces] == [1, 6, 1, 8, 1]
    walk(mine, ours, 3)
    walk(other, theirs, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    lr.fill_(1e-3)  # read where it lies
    walk(mine, ours, 2, first=3)
    walk(other, theirs, 2, first=3)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("warm", [False, True])
def test_goes_on_from_its_state(small_pieces, warm):
    ours, again = parameters(), parameters()
    mine, other = AdamW(ours, torch.tensor(1e-2), 0.1), AdamW(again, torch.tensor(1e-2), 0.1)
    walk(mine, ours, 3)
    if warm:
        walk(other, again, 1)
    places = [tensor.data_ptr() for tensor in other.tensors()]
    with torch.no_grad():
        for a, b in zip(again, ours, strict=True):
            a.copy_(b)
    other.load(copy.deepcopy(mine.state()))  # as from a file
    assert not warm or places == [tensor.data_ptr() for tensor in other.tensors()]
    for adamw, its in ((mine, ours), (other, again)):
        walk(adamw, its, 2, first=3)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    mine.restart()
    assert not any(tensor.any() for tensor in mine.tensors())


def test_pieces_fill_a_gpu_and_stay_few():
    class OnGPU:
        is_cuda = True

        def __init__(self, numbers):
            self.numbers = numbers

        def numel(self):
            return self.numbers

    assert optimiser.piece_size([OnGPU(44_000)] * 7) == 8192
    assert optimiser.piece_size([OnGPU(1_000_000)] * 10) == 98 * 1024  # 100 pieces, whole in kilobytes of words
    assert optimiser.piece_size([torch.zeros(10)]) > 1e12
