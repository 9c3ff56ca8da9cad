"""Linear attention in Triton, and its reference, against the recurrence that defines it, token by token."""

import math

import pytest
import torch
import torch.nn.functional as F

from kernels.linear_attention import linear_attention
from kernels.testing import relative_error, run, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(q, k, v, decay=None, initial_state=None, *, normalize=True, eps=1e-12, return_state=False):
    """One token after the other."""
    v = F.pad(v, (0, 1), value=1.0) if normalize else v
    state = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3]).to(v) if initial_state is None else initial_state
    out = []
    for t in range(q.shape[2]):
        if decay is not None:
            factor = decay[:, :, t].exp()
            state = state * (factor[..., None, None] if decay.dim() == 3 else factor[..., None])
        state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append((q[:, :, t, :, None] * state).sum(2))
    y = torch.stack(out, 2)
    y = y[..., :-1] / (y[..., -1:] + eps) if normalize else y
    return (y, state) if return_state else y


def inputs(batch, heads, length, features, width, decay=None, state=False, normalize=True):
    """Positive features, as the normaliser asks for; log-decays of mixed strength."""
    torch.manual_seed(length + features)
    q, k = torch.rand(2, batch, heads, length, features).double() + 0.1
    tensors = {"q": q, "k": k, "v": torch.randn(batch, heads, length, width).double()}
    if decay:
        shape = (batch, heads, length, features) if decay == "channel" else (batch, heads, length)
        strong = (torch.rand(shape) < 0.1).double() * 20
        tensors["decay"] = -(torch.rand(shape).double() ** 4) - strong
    if state:
        tensors["initial_state"] = torch.rand(batch, heads, features, width + normalize).double() * math.sqrt(length)
    return tensors


CASES = [
    # batch, heads, length, features, width, decay, states, normalize
    (1, 1, 1, 16, 16, None, True, True),
    (1, 3, 63, 24, 16, None, False, True),
    (1, 1, 200, 100, 24, None, True, True),
    (1, 1, 127, 16, 24, None, True, False),
    (1, 1, 1, 16, 16, "scalar", True, True),
    (2, 1, 127, 24, 16, "scalar", True, True),
    (1, 1, 200, 16, 40, "scalar", False, False),
    (1, 1, 18, 16, 24, "channel", True, True),
]
GIVEN = "batch, heads, length, features, width, decay, states, normalize"


@pytest.mark.parametrize(GIVEN, CASES)
def test_equals_the_recurrence(where, batch, heads, length, features, width, decay, states, normalize):
    tensors = inputs(batch, heads, length, features, width, decay, states, normalize)
    wide = ("decay", "initial_state")
    verify(linear_attention, oracle, tensors, wide=wide, normalize=normalize, return_state=states, **where)


def test_decay_a_channel_over_chunks():
    """Chunks of 64 tokens, their rows by 16: each row meets its own 16, the others of its chunk, and the state."""
    tensors = inputs(1, 1, 66, 4, 4, "channel", True)
    verify(linear_attention, oracle, tensors, return_state=True)


@pytest.mark.parametrize(GIVEN, [*CASES, (1, 2, 70, 8, 8, "channel", True, True)])
def test_reference_equals_the_recurrence(batch, heads, length, features, width, decay, states, normalize):
    tensors = inputs(batch, heads, length, features, width, decay, states, normalize)
    options = {"normalize": normalize, "return_state": states}
    got = run(linear_attention, tensors, options | {"backend": "torch"}, True)
    want = run(oracle, tensors, options, True)
    for name, value in want.items():
        assert relative_error(got[name], value) < 1e-10, name


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("strength, every", [(-20.0, 1), (-torch.inf, 2)])
def test_strong_decay_is_finite_and_exact(backend, channel, strength, every):
    """At every token, and at one in two, where weak decays must survive beside the strong."""
    torch.manual_seed(4)
    shape = (1, 1, 20, 4) if channel else (1, 1, 70)
    q, k, v = torch.rand(3, 1, 1, shape[2], 4) + 0.1
    decay = torch.full(shape, -0.01)
    decay[:, :, ::every] = strength
    tensors = {"q": q, "k": k, "v": v, "decay": decay}
    want = run(oracle, {n: t.double() for n, t in tensors.items()}, {"normalize": False}, True)
    got = run(linear_attention, tensors, {"backend": backend, "normalize": False}, True)
    for name, value in got.items():  # d decay too, of about exp(-20) of the others: not lost in their rounding
        assert relative_error(value, want[name]) < (1e-4 if name.startswith("d ") else 1e-5), name
    if not channel:
        for name, value in run(linear_attention, tensors, {"backend": backend}, True).items():
            assert value.isfinite().all(), name


@pytest.mark.parametrize("size", [1e-3, 300.0])
def test_half_precision_reaches_beyond_its_range(size):
    """Weights of 1e-6 and of 1e5, neither of which fp16 holds; their sum over a sequence is out of its range too."""
    tensors = inputs(1, 1, 80, 16, 16, "scalar")
    tensors["q"], tensors["k"] = size * tensors["q"], size * tensors["k"]
    verify(linear_attention, oracle, tensors, dtype=torch.float16, wide=("decay",), gradients=size < 1)


@pytest.mark.parametrize("normalize", [True, False])
def test_reference_in_half_precision_over_many_chunks(normalize):
    """All inputs of two bytes, decays a channel too, as GLA has them: what chunks pass on to each other is not."""
    tensors = {name: t.half() for name, t in inputs(1, 2, 200, 16, 24, "channel").items()}
    options = {"normalize": normalize, "return_state": True}
    got = run(linear_attention, tensors, options | {"backend": "torch"}, True)
    want = run(oracle, {name: t.double() for name, t in tensors.items()}, options, True)
    for name, value in want.items():
        assert relative_error(got[name], value) < 1e-3, name


def test_any_layout_and_mixed_types():
    """Token-major storage, a broadcast head, features in fp32 with values in fp16, a decay that is a view."""
    torch.manual_seed(5)
    q, k = torch.rand(2, 2, 20, 3, 8).transpose(2, 3)
    v = torch.randn(2, 1, 20, 8).half().expand(-1, 3, -1, -1)
    decay = -torch.rand(2, 20, 3).transpose(1, 2)
    got = linear_attention(q, k, v, decay=decay, backend="triton")
    want = oracle(q.double(), k.double(), v.double(), decay.double())
    assert got.dtype == torch.float16 and relative_error(got, want) < 1e-3


def test_gradient_through_the_state_alone():
    tensors = {name: t.float().requires_grad_() for name, t in inputs(1, 1, 20, 8, 8, "scalar", True).items()}
    grads = []
    for backend in ("triton", "torch"):
        _, state = linear_attention(**tensors, return_state=True, backend=backend)
        weight = torch.arange(state.numel()).view_as(state).float().cos()
        used = [tensors[n] for n in ("k", "v", "decay", "initial_state")]
        grads.append(torch.autograd.grad((state * weight).sum(), used))
    for got, want in zip(*grads, strict=True):
        assert relative_error(got, want) < 1e-5


def test_chunks_of_a_sequence_pass_their_state_on():
    tensors = {name: t.float() for name, t in inputs(1, 2, 90, 8, 8, "scalar").items()}
    want = linear_attention(**tensors, backend="torch")
    state, parts = None, []
    for cut in (slice(0, 17), slice(17, 90)):
        part = {name: t[:, :, cut] for name, t in tensors.items()}
        y, state = linear_attention(**part, initial_state=state, return_state=True, backend="triton")
        parts.append(y)
    assert relative_error(torch.cat(parts, 2), want) < 1e-5


def test_no_tokens_leave_the_state_as_it_is():
    q, v = torch.randn(2, 3, 0, 4), torch.randn(2, 3, 0, 5)
    for decay in (torch.zeros(2, 3, 0), torch.zeros(2, 3, 0, 4)):
        state = torch.randn(2, 3, 4, 5)
        y, after = linear_attention(q, q, v, decay=decay, normalize=False, initial_state=state, return_state=True)
        assert y.shape == v.shape and torch.equal(after, state)


def test_is_a_well_formed_operator():
    from kernels.linear_attention import triton

    torch.manual_seed(2)
    q, k, v = (torch.rand(1, 1, 5, 4, device=HERE, requires_grad=True) for _ in range(3))
    decay = (-torch.rand(1, 1, 5, device=HERE)).requires_grad_()
    state = torch.rand(1, 1, 4, 5, device=HERE, requires_grad=True)
    torch.library.opcheck(triton.attend, (q, k, v, decay, state, True, 1e-6, True))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": torch.ones(1, 2, 6, 3)}, r"expected q, k \(B, H, T, d\).*\(1, 2, 6, 3\)"),
        ({"decay": torch.zeros(1, 2, 4)}, r"expected decay \(1, 2, 5\) or \(1, 2, 5, 3\).*got \(1, 2, 4\)"),
        ({"initial_state": torch.zeros(1, 2, 3, 4)}, r"expected initial_state \(1, 2, 3, 5\).*got \(1, 2, 3, 4\)"),
        ({"backend": "trition"}, "unknown backend 'trition'"),
    ],
)
def test_wrong_input_is_named(change, message):
    given = {"q": torch.ones(1, 2, 5, 3), "k": torch.ones(1, 2, 5, 3), "v": torch.ones(1, 2, 5, 4)}
    with pytest.raises(ValueError, match=message):
        linear_attention(**(given | change))
