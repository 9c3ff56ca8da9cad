"""Hedgehog attention, with and without a window, against its weights written out one query at a time."""

import pytest
import torch

from kernels.hedgehog_attention import hedgehog_attention
from kernels.testing import relative_error, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(q, k, v, w_q, w_k, mix_near=None, mix_far=None, window=None, normalize=True, eps=1e-12):
    rows = []
    for t in range(q.shape[2]):
        near = 0 if window is None else min(window, t + 1)
        split = t + 1 - near

        def features(x, w):
            y = torch.einsum("bh...d,hdf->bh...f", x, w)
            return torch.cat([torch.softmax(y, -1), torch.softmax(-y, -1)], -1)

        weights = torch.einsum("bhf,bhsf->bhs", features(q[:, :, t], w_q), features(k[:, :, :split], w_k))
        if mix_far is not None:
            weights = weights * mix_far[:, None]
        if near:
            s = torch.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, split : t + 1]) / q.shape[3] ** 0.5
            exact = torch.exp(s - s.detach().amax(-1, keepdim=True))
            weights = torch.cat([weights, exact if mix_near is None else exact * mix_near[:, None]], dim=-1)
        y = torch.einsum("bhs,bhsd->bhd", weights, v[:, :, : t + 1])
        rows.append(y / (weights.sum(-1, keepdim=True) + eps) if normalize else y)
    return torch.stack(rows, dim=2)


def call(q, k, v, w_q, w_k, mix_near=None, mix_far=None, **options):
    return hedgehog_attention(q, k, v, w_q, w_k, mix=None if mix_near is None else (mix_near, mix_far), **options)


def example(batch, heads, length, d, dv, f, mixed=False):
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, heads, length, d).double()
    w_q, w_k = torch.randn(2, heads, d, f).double() * d**-0.5
    given = {"q": q, "k": k, "v": torch.randn(batch, heads, length, dv).double(), "w_q": w_q, "w_k": w_k}
    return given | ({"mix_near": torch.rand(heads).double(), "mix_far": torch.rand(heads).double()} if mixed else {})


EXAMPLES = [
    ((1, 1, 1, 16, 16, 16), {}),
    ((2, 2, 50, 16, 24, 10), {"normalize": False}),
    ((1, 1, 70, 24, 16, 16), {}),
    ((1, 1, 140, 16, 16, 8), {}),
    ((1, 2, 63, 40, 24, 12), {}),  # wider than the narrow kernels take
    ((2, 1, 127, 24, 100, 48), {"normalize": False}),
    ((1, 1, 30, 160, 16, 16), {}),  # too wide for features to be formed within the attention
    ((1, 1, 1, 16, 16, 16), {"window": 1}),
    ((1, 2, 50, 100, 16, 16), {"window": 5}),
    ((1, 1, 140, 16, 24, 16, True), {"window": 5}),
    ((1, 1, 70, 24, 16, 10, True), {"window": 1, "normalize": False}),
    ((1, 1, 140, 16, 16, 8, True), {"window": 64}),
    ((1, 1, 70, 16, 72, 35), {"window": 33}),  # three tiles of features, and of values, a state
    ((1, 2, 20, 16, 16, 16, True), {"window": 64, "normalize": False}),
]
WIDE = ("w_q", "w_k", "mix_near", "mix_far")


@pytest.mark.parametrize("shape, options", EXAMPLES)
def test_equals_the_weights_written_out(where, shape, options):
    given = example(*shape)
    mix = {name: given.pop(name).float().to(where["device"]) for name in WIDE[2:] if name in given}
    verify(call, oracle, given, wide=WIDE, **mix, **options, **where)


@pytest.mark.parametrize("normalize", [True, False])
def test_mix_learns(where, normalize):
    """Its gradient is one number a head, a sum over all tokens that cancels."""
    verify(
        call, oracle, example(1, 2, 70, 16, 16, 8, True), wide=WIDE, scale=3, window=20, normalize=normalize, **where
    )


def test_a_window_off_by_one_is_seen(where):
    def wrong(window, **given):
        return oracle(window=window + 1, **given)

    with pytest.raises(AssertionError, match="out 0: relative error"):
        verify(call, wrong, example(1, 1, 40, 16, 16, 8), wide=WIDE, window=5, **where)


def fitting(allowed: bool):
    """`wide.fits` for a test. Its kernels are for bf16; the interpreter, which has no registers, takes fp32."""
    dtype = torch.float32 if HERE == "cpu" else torch.bfloat16
    return lambda q, v, w: allowed and q.dtype == dtype


@pytest.mark.parametrize("shape, options", [EXAMPLES[i] for i in (0, 1, 3, 4, 5)])
@pytest.mark.parametrize("kernels", ["wide", "in memory"])
def test_so_do_the_other_kernels(where, kernels, shape, options, monkeypatch):
    from kernels.hedgehog_attention import fused, wide

    monkeypatch.setattr(fused, "fits", lambda *args: False)
    monkeypatch.setattr(wide, "fits", fitting(kernels == "wide"))
    verify(call, oracle, example(*shape), wide=WIDE, **options, **where)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [3, 5])
def test_spans_start_from_those_before(where, count, normalize, monkeypatch):
    """Of 260 tokens, five chunks of 64: three spans are not alike."""
    from kernels.hedgehog_attention import fused, wide

    monkeypatch.setattr(fused, "fits", lambda *args: False)
    monkeypatch.setattr(wide, "fits", fitting(True))
    monkeypatch.setattr(wide, "LEAST", 1)
    monkeypatch.setattr(wide, "PROGRAMS", count)
    given = example(1, 1, 260, 24, 72, 12)
    assert wide.cut(given["q"], 64)[0] == count
    verify(call, oracle, given, wide=WIDE, normalize=normalize, **where)


def test_rows_that_lie_apart(where):
    """Heads within rows of all heads, as projections leave them, and a y whose gradient lies so too."""

    def transposed(function):
        def run(q, k, v, w_q, w_k, **options):
            q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
            return function(q, k, v, w_q, w_k, **options).transpose(1, 2).contiguous()

        return run

    verify(transposed(call), transposed(oracle), example(2, 2, 40, 48, 32, 16), wide=WIDE, **where)


@pytest.mark.parametrize("kernels", ["fused", "wide", "in memory"])
def test_sequences_of_a_batch_are_added(where, kernels, monkeypatch):
    """Three, in the narrow kernels to two shares, two and one; of three chunks each, the last with a rest."""
    from kernels.hedgehog_attention import features, fused, wide

    monkeypatch.setattr(fused, "fits", lambda *args: kernels == "fused")
    monkeypatch.setattr(wide, "fits", fitting(kernels == "wide"))
    monkeypatch.setattr(fused, "shares", lambda *args: 2)
    monkeypatch.setattr(features, "PROGRAMS", 4)
    verify(call, oracle, example(3, 2, 40, 16, 16, 10), wide=WIDE, **where)


@pytest.mark.parametrize("shape, options", EXAMPLES)
def test_reference_is_exact(shape, options):
    given = example(*shape)
    assert relative_error(call(**given, **options), oracle(**given, **options)) < 1e-10


@pytest.mark.parametrize("d, f", [(24, 16), (16, 16), (40, 12)])
def test_kernels_are_chosen_by_the_type_that_is_computed(d, f):
    """That of v; 24 wide, fp16 has other kernels than fp32."""
    given = {name: t.float().to(HERE) for name, t in example(1, 2, 20, d, d, f).items()}
    given["q"], given["k"] = given["q"].half(), given["k"].half()
    got, want = (hedgehog_attention(**given, backend=backend) for backend in ("triton", "torch"))
    assert got.dtype == torch.float32 and relative_error(got, want) < 1e-5


def test_no_tokens():
    q, w = torch.randn(1, 2, 0, 48, device=HERE), torch.randn(2, 48, 4, device=HERE)
    for window in (None, 4):
        assert hedgehog_attention(q, q, q, w, w, window=window, backend="triton").shape == q.shape


def test_are_well_formed_operators():
    from kernels.hedgehog_attention import features, triton

    q, k, v, w_q, w_k = (t.float().to(HERE).requires_grad_() for t in example(1, 1, 9, 16, 16, 8).values())
    torch.library.opcheck(triton.attend, (q, k, v, w_q, w_k, True, 0.1))
    torch.library.opcheck(features.features, (q, w_q))
    phi = features.features(q, w_q).detach().requires_grad_()
    torch.library.opcheck(
        triton.pairs, (q, k, v, phi, phi.detach().clone(), torch.ones(2, 1, device=HERE), 4, True, 0.1)
    )


def test_bad_input():
    q, k, v, w_q, w_k = example(1, 2, 8, 16, 16, 8).values()
    with pytest.raises(ValueError, match=r"expected w_q and w_k \(2, 16, f\)"):
        hedgehog_attention(q, k, v, w_q[:1], w_k[:1])
    with pytest.raises(ValueError, match="window must be a whole number of at least 1"):
        hedgehog_attention(q, k, v, w_q, w_k, window=0)
    with pytest.raises(ValueError, match="it needs a window"):
        hedgehog_attention(q, k, v, w_q, w_k, mix=(torch.ones(2), torch.ones(2)))
    with pytest.raises(ValueError, match=r"mix of two tensors \(2,\)"):
        hedgehog_attention(q, k, v, w_q, w_k, window=3, mix=(torch.ones(1), torch.ones(1)))
    with pytest.raises(ValueError, match=r"mix of two tensors \(2,\), got \[\(2,\)\]"):
        hedgehog_attention(q, k, v, w_q, w_k, window=3, mix=(torch.ones(2),))
