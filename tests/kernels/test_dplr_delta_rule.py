"""The rule with a diagonal-plus-low-rank transition, in Triton and in torch, against its dense matrices."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.dplr_delta_rule import dplr_delta_rule, reference
from kernels.testing import relative_error, run, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"

WIDE = ("decay", "initial_state")


def oracle(q, k, v, a, b, decay, initial_state=None, return_state=False):
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        transition = torch.diag_embed(decay[:, :, t].exp()) + b[:, :, t, :, None] * a[:, :, t, None, :]
        state = transition @ state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    y = torch.stack(outputs, 2)
    return (y, state) if return_state else y


def inputs(batch, heads, length, d, dv, *, decay="mild", state=False):
    """a and b are no multiples of each other, so that neither can stand in for the other."""
    torch.manual_seed(0)
    keys = (batch, heads, length, d)
    kappa = F.normalize(torch.randn(keys).double(), dim=-1)
    given = {
        "q": torch.randn(keys).double(),
        "k": torch.randn(keys).double() * d**-0.5,
        "v": torch.randn(batch, heads, length, dv).double(),
        "a": -kappa,
        "b": kappa * torch.rand(keys).double(),
        "decay": (-0.6 if decay == "mild" else -3.0) * torch.rand(keys).double(),
    }
    if state:
        given["initial_state"] = torch.randn(batch, heads, d, dv).double()
    return given


CASES = [
    # batch, heads, length, d, dv, decay, state
    (1, 1, 1, 16, 16, "mild", True),
    (2, 2, 3, 16, 24, "mild", False),
    (1, 1, 63, 16, 16, "mild", False),
    (1, 1, 7, 24, 40, "strong", True),  # two blocks of values
    (1, 1, 3, 100, 16, "mild", True),  # several of keys
]


@pytest.mark.parametrize("batch, heads, length, d, dv, decay, state", CASES)
def test_equals_the_recurrence(where, batch, heads, length, d, dv, decay, state):
    if length > 60 and where["dtype"] == torch.float16:
        pytest.skip("slow to follow, and the same kernels")
    tensors = inputs(batch, heads, length, d, dv, decay=decay, state=state)
    verify(dplr_delta_rule, oracle, tensors, return_state=state, wide=WIDE, **where)


@pytest.mark.parametrize(
    "batch, heads, length, d, dv, decay, state", [*CASES, (2, 1, 127, 16, 24, "strong", True)]
)  # fmt: skip
def test_the_reference_equals_the_recurrence(batch, heads, length, d, dv, decay, state):
    tensors = inputs(batch, heads, length, d, dv, decay=decay, state=state)
    got = run(reference.dplr_delta_rule, tensors, {"return_state": state}, True)
    want = run(oracle, tensors, {"return_state": state}, True)
    for name in want:
        assert relative_error(got[name], want[name]) < 1e-10, name


def test_what_is_read_has_not_decayed_yet():
    """Reading after the decay is another rule, and far enough from this one to be told apart."""
    tensors = inputs(1, 1, 9, 8, 8, decay="strong")
    later = tensors | {"a": tensors["a"] * tensors["decay"].exp()}
    assert relative_error(reference.dplr_delta_rule(**tensors), oracle(**tensors)) < 1e-12
    assert relative_error(reference.dplr_delta_rule(**later), oracle(**tensors)) > 1e-2


def test_the_delta_rule_is_a_case_of_it():
    """beta k (v - S'^T k)^T with S' = exp(g) S: what is read has decayed there, so exp(g) goes to b."""
    given = inputs(1, 2, 40, 16, 24, state=True)
    q, v, first, k = given["q"], given["v"], given["initial_state"], -given["a"]
    beta, g = torch.rand(1, 2, 40).double(), -torch.rand(1, 2, 40).double()
    b = -(beta * g.exp()).unsqueeze(-1) * k
    own = (q, beta.unsqueeze(-1) * k, v, k, b, g.unsqueeze(-1).expand_as(q))
    got = dplr_delta_rule(*own, initial_state=first, return_state=True)
    want = kernels.delta_rule(q, k, v, beta, g, initial_state=first, return_state=True)
    assert all(relative_error(x, y) < 1e-12 for x, y in zip(got, want, strict=True))


def test_gated_linear_attention_is_a_case_of_it():
    given = inputs(1, 2, 40, 16, 24, state=True)
    q, k, v, g, first = (given[name] for name in ("q", "k", "v", "decay", "initial_state"))
    options = {"initial_state": first, "return_state": True}
    got = dplr_delta_rule(q, k, v, torch.zeros_like(q), given["b"], g, **options)
    want = kernels.linear_attention(q, k, v, decay=g, normalize=False, **options)
    assert all(relative_error(x, y) < 1e-12 for x, y in zip(got, want, strict=True))


def test_decay_that_forgets_and_tokens_that_add_nothing(where):
    tensors = inputs(1, 1, 10, 16, 16, decay="strong", state=True)
    tensors["decay"][:, :, ::3] = -50.0
    tensors["decay"][:, :, 4:6] = -torch.inf
    tensors["b"][:, :, 7] = 0.0
    tensors["k"][:, :, 7:9] = 0.0
    verify(dplr_delta_rule, oracle, tensors, return_state=True, wide=WIDE, **where)


@pytest.mark.parametrize("laid_out", ["tokens first", "each its own way"])
def test_strides_and_a_cotangent_that_is_expanded(laid_out):
    given = {name: t.float().to(HERE) for name, t in inputs(2, 2, 4, 16, 8).items()}
    for at, (name, t) in enumerate(given.items()):
        if laid_out == "tokens first" or at % 3 == 1:
            given[name] = t.transpose(1, 2).contiguous().transpose(1, 2)
        elif at % 3 == 2:
            given[name] = t.mT.contiguous().mT
    leaves = [t.requires_grad_() for t in given.values()]
    results = []
    for backend in ("torch", "triton"):
        y = dplr_delta_rule(*leaves, backend=backend)
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])
    for want, got in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-5


def test_sizes_beyond_the_chip():
    tensors = inputs(1, 1, 3, 16, 257)
    assert dplr_delta_rule(**tensors).shape == (1, 1, 3, 257)
    with pytest.raises(ValueError, match="heads of width 256 at most, got 257"):
        dplr_delta_rule(**{n: t.float().to(HERE) for n, t in tensors.items()}, backend="triton")
    empty = {n: t[:, :, :0] for n, t in inputs(1, 1, 3, 16, 8).items()}
    assert dplr_delta_rule(**empty).shape == (1, 1, 0, 8)
    with pytest.raises(ValueError, match=r"no empty tensors, got q \(1, 1, 0, 16\)"):
        dplr_delta_rule(**{n: t.float().to(HERE) for n, t in empty.items()}, backend="triton")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"v": torch.ones(1, 2, 4, 8)}, r"expected q, k \(B, H, T, d\) and v .* got .*\(1, 2, 4, 8\)"),
        ({"a": torch.ones(1, 2, 5, 8)}, r"expected a \(1, 2, 5, 4\), as q, got \(1, 2, 5, 8\)"),
        ({"b": torch.ones(1, 2, 5)}, r"expected b \(1, 2, 5, 4\), as q, got \(1, 2, 5\)"),
        ({"decay": torch.zeros(1, 2, 5)}, r"expected decay \(1, 2, 5, 4\), as q, got \(1, 2, 5\)"),
        ({"initial_state": torch.zeros(1, 2, 8, 4)}, r"expected initial_state \(1, 2, 4, 8\), got \(1, 2, 8, 4\)"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_rejects(wrong, message):
    given = {name: torch.ones(1, 2, 5, 4) for name in ("q", "k", "a", "b", "decay")}
    with pytest.raises(ValueError, match=message):
        dplr_delta_rule(**(given | {"v": torch.ones(1, 2, 5, 8)} | wrong))


def test_is_a_well_formed_operator():
    from kernels.dplr_delta_rule import triton

    tensors = {n: t.float().to(HERE).requires_grad_() for n, t in inputs(1, 2, 3, 4, 3, state=True).items()}
    torch.library.opcheck(triton.forward, tuple(tensors.values()))
