"""The kernels' checker must reject what is wrong: zeros, a slight error, a hole, a wrong gradient, a wrong shape."""

import pytest
import torch

from kernels.testing import poisoned_memory, verify


def oracle(x, w):
    return x * w, (x * w).cumsum(-1)


def pair():
    torch.manual_seed(0)
    return {"x": torch.randn(4, 33).double(), "w": torch.randn(33).double()}


def check(wrong):
    verify(lambda x, w, backend: wrong(x, w), oracle, pair())


def test_accepts_what_is_right():
    check(oracle)


def slightly_wrong(x, w):
    y, z = oracle(x, w)
    return y, torch.cat([z[:, :-1], 1.001 * z[:, -1:]], dim=1)


def a_hole(x, w):
    y, z = oracle(x, w)
    out = torch.empty_like(y)
    out[:, :-1] = y[:, :-1]
    return out + 0 * y, z


def wrong_gradient(x, w):
    y, z = oracle(x, w.detach())
    return y + 0 * w, z


@pytest.mark.parametrize(
    "wrong, what",
    [
        (lambda x, w: (0 * x * w, 0 * x * w), "out 0: relative error 1.00e"),
        (slightly_wrong, "out 1: relative error"),
        (a_hole, "out 0: relative error inf"),
        (wrong_gradient, "d w: relative error"),
        (lambda x, w: ((x * w)[:, :-1], x * w), "expected shape"),
    ],
    ids=["zeros", "slightly wrong", "a hole", "gradient", "shape"],
)
def test_rejects_what_is_wrong(wrong, what):
    with pytest.raises(AssertionError, match=what):
        check(wrong)


def test_fresh_memory_is_poisoned():
    with poisoned_memory():
        assert torch.empty(100).isnan().all()
