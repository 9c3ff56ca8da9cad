"""The selective scan in Triton and in torch against the recurrence, one token after the other."""

import pytest
import torch
import torch.nn.functional as F

from kernels.selective_scan import reference, selective_scan
from kernels.testing import relative_error, run, verify


def oracle(u, dt, a, b, c, skip=None, gate=None, initial_state=None, return_state=False):
    state = u.new_zeros(*u.shape[:2], a.shape[1]) if initial_state is None else initial_state
    outputs = []
    for t in range(u.shape[-1]):
        state = (dt[:, :, t, None] * a).exp() * state + (dt * u)[:, :, t, None] * b[:, None, :, t]
        outputs.append((state * c[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, -1)
    if skip is not None:
        y = y + skip[:, None] * u
    if gate is not None:
        y = y * gate * gate.sigmoid()
    return (y, state) if return_state else y


def inputs(batch, channels, length, states, *, more=True, state=True):
    torch.manual_seed(0)
    given = {
        "u": torch.randn(batch, channels, length).double(),
        "dt": F.softplus(torch.randn(batch, channels, length).double() - 1),
        "a": -torch.arange(1.0, states + 1).double() * (torch.rand(channels, states).double() + 0.5),
        "b": torch.randn(batch, states, length).double(),
        "c": torch.randn(batch, states, length).double(),
    }
    if more:
        given["skip"] = torch.randn(channels).double()
        given["gate"] = torch.randn(batch, channels, length).double()
    if state:
        given["initial_state"] = torch.randn(batch, channels, states).double()
    return given


CASES = [
    # batch, channels, length, states, skip and gate, state
    (2, 3, 1, 2, True, True),
    (2, 3, 63, 3, False, False),
    (1, 2, 200, 2, True, True),
    (1, 17, 100, 1, True, False),  # nine blocks of channels
]


@pytest.mark.parametrize("batch, channels, length, states, more, state", CASES)
def test_equals_the_recurrence(where, batch, channels, length, states, more, state):
    if channels > 16 and where["dtype"] == torch.float16:
        pytest.skip("slow to follow, and the same kernel")
    tensors = inputs(batch, channels, length, states, more=more, state=state)
    verify(selective_scan, oracle, tensors, return_state=state, wide=("a", "skip", "initial_state"), **where)


@pytest.mark.parametrize("batch, channels, length, states, more, state", CASES)
def test_the_reference_equals_the_recurrence(batch, channels, length, states, more, state):
    tensors = inputs(batch, channels, length, states, more=more, state=state)
    got = run(reference.selective_scan, tensors, {"return_state": state}, True)
    want = run(oracle, tensors, {"return_state": state}, True)
    for name in want:
        assert relative_error(got[name], want[name]) < 1e-10, name


def test_several_blocks_of_channels_a_program(where, monkeypatch):
    """As where there are many sequences, or long ones: db and dc are added up over a program's blocks."""
    from kernels.selective_scan import triton

    monkeypatch.setattr(triton, "blocks_each", lambda *sizes: 2)
    tensors = inputs(2, 5, 130, 2)  # three blocks: the last program has one that is not there
    verify(selective_scan, oracle, tensors, wide=("a", "skip", "initial_state"), **where)


def test_how_many_blocks_a_program_takes():
    from kernels.selective_scan.triton import blocks_each

    assert blocks_each(128, 128, 128, 16) == 4  # 4,096 programs
    assert blocks_each(1, 512, 128, 16) == 1
    assert blocks_each(1, 512, 32768, 16) == 2  # of 512 x 2 x 16 x 32,768 partial sums half
    assert blocks_each(65535, 3, 16, 4) == 3 and blocks_each(1, 4, 2**27, 16) == 4  # one program a sequence


@pytest.mark.parametrize("rate", [-50.0, -300.0])
def test_decays_that_forget_at_once(where, rate):
    """exp(dt a) down to exp(-50) everywhere, and to 0 in fp32: what little remains still has the right slope."""
    tensors = inputs(1, 2, 40, 2, state=rate > -100)
    tensors["dt"] = torch.rand(1, 2, 40).double() + 0.01
    tensors["a"] = torch.full_like(tensors["a"], rate)
    verify(selective_scan, oracle, tensors, return_state=True, wide=("a", "skip", "initial_state"), **where)


def test_strides():
    torch.manual_seed(1)
    u, dt, gate = torch.rand(2, 20, 3, 5).permute(2, 0, 3, 1)  # channel-last
    b, c = torch.randn(2, 20, 2, 4).permute(2, 0, 3, 1)
    leaves = [t.detach().requires_grad_() for t in (u, dt, -torch.rand(5, 4), b, c, torch.randn(5), gate)]
    results = []
    for backend in ("torch", "triton"):
        y = selective_scan(*leaves, backend=backend)
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])
    for want, got in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"u": torch.ones(2, 5)}, r"expected u \(B, D, L\) .* got \(2, 5\)"),
        ({"a": -torch.ones(4, 2)}, r"expected a \(3, 2\) .* got \(4, 2\)"),
        ({"dt": torch.ones(1, 3, 5)}, r"expected dt \(2, 3, 5\) .* got \(1, 3, 5\)"),
        ({"c": torch.ones(2, 5, 2)}, r"expected c \(2, 2, 5\) .* got \(2, 5, 2\)"),
        ({"skip": torch.ones(3, 1)}, r"expected skip \(3,\) .* got \(3, 1\)"),
        ({"initial_state": torch.ones(2, 2, 3)}, r"expected initial_state \(2, 3, 2\) .* got \(2, 2, 3\)"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_rejects(wrong, message):
    given = {name: t.float() for name, t in inputs(2, 3, 5, 2).items()}
    with pytest.raises(ValueError, match=message):
        selective_scan(**(given | wrong))


def test_more_sequences_than_a_grid_holds_are_named():
    u, dt, a, b, c = (t.float() for t in inputs(65536, 1, 3, 1, more=False, state=False).values())
    with pytest.raises(ValueError, match=r"at most 65535 programs .* got a grid of \(1, 65536\)"):
        selective_scan(u, dt, a, b, c, backend="triton")


def test_is_a_well_formed_operator():
    from kernels.selective_scan import triton

    tensors = {n: t.float().requires_grad_() for n, t in inputs(1, 2, 5, 2).items()}
    torch.library.opcheck(triton.forward, tuple(tensors.values()))
