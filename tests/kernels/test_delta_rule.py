"""The delta rule in Triton and in torch against the recurrence, one token after the other."""

import pytest
import torch
import torch.nn.functional as F

from kernels.delta_rule import LIMIT, delta_rule, reference
from kernels.testing import relative_error, run, verify


def oracle(q, k, v, beta, decay=None, initial_state=None, return_state=False):
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        if decay is not None:
            state = decay[:, :, t, None, None].exp() * state
        held = torch.einsum("bhkv,bhk->bhv", state, k[:, :, t])
        added = beta[:, :, t, None] * (v[:, :, t] - held)
        state = state + k[:, :, t, :, None] * added[:, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    y = torch.stack(outputs, 2)
    return (y, state) if return_state else y


def inputs(batch, heads, length, d, dv, *, decay="mild", state=False):
    torch.manual_seed(0)
    q, v = torch.randn(batch, heads, length, d).double(), torch.randn(batch, heads, length, dv).double()
    given = {"q": q, "k": F.normalize(torch.randn_like(q), dim=-1), "v": v}
    given["beta"] = torch.randn(batch, heads, length).double().sigmoid()
    if decay is not None:
        given["decay"] = F.logsigmoid(torch.randn(batch, heads, length).double() + (3 if decay == "mild" else 0))
    if state:
        given["initial_state"] = torch.randn(batch, heads, d, dv).double()
    return given


HERE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def as_bf16(monkeypatch):
    """fp32, cut into blocks as bf16 is; on a card they would not fit, and bf16 itself is tested."""
    from kernels.delta_rule import triton

    if HERE == "cuda":
        pytest.skip("blocks beyond what fp32 fits in")
    own = triton.blocks
    exact = {name: own(torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1, 1))[name] for name in ("TYPE", "PRECISION")}
    monkeypatch.setattr(triton, "blocks", lambda q, v: own(q.bfloat16(), v) | exact)


CASES = [
    # batch, heads, length, d, dv, decay, state
    (1, 1, 1, 16, 16, "mild", True),
    (1, 3, 17, 16, 24, None, False),
    (1, 1, 40, 24, 40, "strong", True),
    (1, 1, 20, 100, 16, "mild", True),
]


@pytest.mark.parametrize("batch, heads, length, d, dv, decay, state", CASES)
def test_equals_the_recurrence(where, batch, heads, length, d, dv, decay, state):
    tensors = inputs(batch, heads, length, d, dv, decay=decay, state=state)
    verify(delta_rule, oracle, tensors, return_state=state, wide=("decay", "initial_state"), **where)


@pytest.mark.parametrize("batch, heads, length, d, dv, decay, state", CASES)
def test_the_reference_equals_the_recurrence(batch, heads, length, d, dv, decay, state):
    tensors = inputs(batch, heads, length, d, dv, decay=decay, state=state)
    got = run(reference.delta_rule, tensors, {"return_state": state}, True)
    want = run(oracle, tensors, {"return_state": state}, True)
    for name in want:
        assert relative_error(got[name], want[name]) < 1e-10, name


@pytest.mark.parametrize("length, d, dv, decay", [(200, 24, 100, "strong"), (127, 100, 16, None)])
def test_the_blocks_of_bf16(as_bf16, length, d, dv, decay):
    """Chunks of 64 tokens, which a CPU can only follow in fp32."""
    tensors = inputs(1, 1, length, d, dv, decay=decay, state=True)
    verify(delta_rule, oracle, tensors, return_state=True, wide=("decay", "initial_state"), device=HERE)


def test_the_same_key_over_and_over(as_bf16):
    """Powers of the system's matrix reach 1e18 here; the state only holds the last value."""
    tensors = inputs(1, 1, 130, 16, 16, decay=None)
    tensors["k"] = tensors["k"][:, :, :1].expand_as(tensors["k"])
    tensors["beta"] = torch.ones_like(tensors["beta"])
    verify(delta_rule, oracle, tensors, device=HERE)


def test_decay_that_forgets_and_tokens_that_add_nothing(where):
    tensors = inputs(1, 1, 40, 16, 16, decay="strong", state=True)
    tensors["decay"][:, :, ::3] = -50.0
    tensors["decay"][:, :, 20:30] = -torch.inf
    tensors["beta"][:, :, 10:15] = 0.0
    verify(delta_rule, oracle, tensors, return_state=True, wide=("decay", "initial_state"), **where)


def test_strides_and_a_cotangent_that_is_expanded():
    torch.manual_seed(1)
    qkv = torch.randn(2, 20, 3, 2, 16)  # (B, T, 3, H, d)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    beta = torch.rand(2, 20, 2).transpose(1, 2)
    leaves = [t.detach().requires_grad_() for t in (q, F.normalize(k, dim=-1), v, beta)]
    results = []
    for backend in ("torch", "triton"):
        y = delta_rule(*leaves, backend=backend)
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])
    for want, got in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-5


def test_sizes_beyond_the_chip():
    tensors = inputs(1, 1, 3, LIMIT + 1, 16)
    assert delta_rule(**tensors).shape == (1, 1, 3, 16)
    with pytest.raises(ValueError, match=rf"at most {LIMIT} wide .* got q \(1, 1, 3, {LIMIT + 1}\)"):
        delta_rule(**{n: t.float() for n, t in tensors.items()}, backend="triton")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"v": torch.ones(1, 2, 4, 8)}, r"expected q, k \(B, H, T, d\) and v .* got .*\(1, 2, 4, 8\)"),
        ({"beta": torch.ones(1, 2, 6)}, r"expected beta \(1, 2, 5\) .* got \(1, 2, 6\)"),
        ({"decay": torch.zeros(1, 2, 5, 1)}, r"expected decay \(1, 2, 5\) .* got \(1, 2, 5, 1\)"),
        ({"initial_state": torch.zeros(1, 2, 8, 4)}, r"expected initial_state \(1, 2, 4, 8\), got \(1, 2, 8, 4\)"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_rejects(wrong, message):
    given = {"q": torch.ones(1, 2, 5, 4), "k": torch.ones(1, 2, 5, 4), "v": torch.ones(1, 2, 5, 8)}
    with pytest.raises(ValueError, match=message):
        delta_rule(**({**given, "beta": torch.ones(1, 2, 5)} | wrong))


def test_is_a_well_formed_operator():
    from kernels.delta_rule import triton

    tensors = {n: t.float().to(HERE).requires_grad_() for n, t in inputs(1, 2, 5, 4, 3, state=True).items()}
    torch.library.opcheck(triton.forward, tuple(tensors.values()))


def test_a_decay_that_is_not_a_number_is_not_lost():
    given = {name: t.float().to(HERE) for name, t in inputs(1, 1, 5, 16, 16, state=True).items()}
    given["decay"][0, 0, 2] = torch.nan
    for backend in ("triton", "torch"):
        y, state = delta_rule(**given, return_state=True, backend=backend)
        assert state.isnan().all() and y[:, :, 2:].isnan().all()
