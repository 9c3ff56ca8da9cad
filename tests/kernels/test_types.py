"""Tensors of several types, and of none: what `v` (a convolution's `u`) is decides, and gradients reach all of them."""

import pytest
import torch

import kernels
from kernels import checks

B, H, T, D = 2, 3, 6, 4


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def heads(length=T):
    return {name: draw(B, H, length, D) for name in "qkv"}


def prefixed(batch=B, suffix=T):
    level = draw(1, 5, H, D), draw(1, 5, H, D)
    lengths = torch.full((batch,), suffix)
    return draw(batch, 1, H, D), [level], draw(batch, suffix, H, D), draw(batch, suffix, H, D), lengths


CALLS = {  # those given in fp64 come last
    "linear_attention": (kernels.linear_attention, lambda: [*heads().values()]),
    "with a state": (
        lambda q, k, v: kernels.linear_attention(q, k, v, return_state=True)[0],
        lambda: [*heads().values()],
    ),
    "taylor_attention": (kernels.taylor_attention, lambda: [*heads().values()]),
    "hedgehog_attention": (
        lambda a, b, q, k, v: kernels.hedgehog_attention(q, k, v, a, b),
        lambda: [draw(H, D, D), draw(H, D, D), *heads().values()],
    ),
    "with a window": (
        lambda a, b, q, k, v: kernels.hedgehog_attention(q, k, v, a, b, window=2),
        lambda: [draw(H, D, D), draw(H, D, D), *heads().values()],
    ),
    "toeplitz_attention": (
        lambda taps, q, k, v: kernels.toeplitz_attention(q, k, v, taps),
        lambda: [draw(H, T), *heads().values()],
    ),
    "fft_conv": (
        lambda k, skip, a, b, u: kernels.fft_conv(u, k, skip=skip, pre_gate=a, post_gate=b),
        lambda: [draw(H, T), draw(H), *(draw(B, H, T) for _ in range(3))],
    ),
}


@pytest.mark.parametrize("call, given", CALLS.values(), ids=CALLS)
def test_the_last_tensor_decides_the_type(call, given):
    torch.manual_seed(0)
    *others, last = given()
    others = [t.float() for t in others]
    y = call(*others, last)
    assert y.dtype == torch.float64
    assert torch.allclose(y, call(*(t.double() for t in others), last), rtol=0, atol=1e-12)
    assert call(*others, last.half()).dtype == torch.float16


def test_shared_prefixes_take_the_type_of_the_queries():
    torch.manual_seed(0)
    q, [level], k, v, lengths = prefixed()
    narrow = [tuple(t.float() for t in level)], k.float(), v.float(), lengths
    y = kernels.shared_prefix_attention(q, *narrow)
    again = [tuple(t.double() for t in narrow[0][0])], narrow[1].double(), narrow[2].double(), lengths
    assert y.dtype == torch.float64
    assert torch.allclose(y, kernels.shared_prefix_attention(q, *again), rtol=0, atol=1e-12)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_a_step_beside_a_wider_cache(narrow):
    torch.manual_seed(0)
    q, k, v = (draw(B, H, D, dtype=narrow) for _ in range(3))
    cache = draw(B, H, 3, D).float(), draw(B, H, 3, D).float()
    position = torch.tensor([1, 7])
    y, new = kernels.sliding_step(q, k, v, cache, position)
    want, _ = kernels.sliding_step(q.float(), k.float(), v.float(), cache, position)
    assert y.dtype == narrow and new[0].dtype == torch.float32
    assert torch.equal(y, want.to(narrow))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kernels.sliding_step(q.float(), k.float(), v.float(), cache, position)[0], want)


def test_a_filter_with_parts_in_fp64_is_of_fp64():
    position, frequency, out, decay = draw(5, 3), draw(4), draw(2, 4), draw(2)
    hidden = [(draw(4, 3), draw(4)), (draw(4, 4), draw(4))]
    want = kernels.implicit_filter(position, frequency, hidden, out, decay)
    for tensors in (
        (position.float(), frequency, hidden, out, decay),
        (position, frequency, hidden, out, decay.float()),
    ):
        got = kernels.implicit_filter(*tensors)
        assert got.dtype == torch.float64 and torch.allclose(got, want, rtol=1e-5)


def test_under_autocast_a_monarch_product_is_of_its_type():
    x, w1, w2 = draw(5, 6).float(), draw(2, 3, 3).float(), draw(3, 4, 2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in ("torch", "triton"):
            if backend == "torch" or torch.cuda.is_available():  # the interpreter's bf16 is wrong
                assert kernels.monarch_matmul(x, w1, w2, backend=backend).dtype == torch.bfloat16
    assert kernels.monarch_matmul(x, w1, w2).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_tokens_are_integers_of_any_type(dtype):
    weight, tokens = draw(7, 3), torch.tensor([[6, 0], [3, 3]])
    assert torch.equal(kernels.embedding(weight, tokens.to(dtype)), weight[tokens])


@pytest.mark.parametrize("length, window", [(0, 2), (0, None)])
def test_no_tokens_have_a_gradient_of_zeros(length, window):
    tensors = [*heads(length).values(), draw(H, D, D), draw(H, D, D)]
    mix = [] if window is None else [draw(H), draw(H)]
    tensors = [t.requires_grad_() for t in (*tensors, *mix)]
    kernels.hedgehog_attention(*tensors[:5], window=window, mix=tuple(mix) or None).sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in tensors)


@pytest.mark.parametrize("batch, suffix, levels", [(2, 0, 1), (2, 0, 0), (0, 3, 1)])
def test_no_keys_leave_every_tensor_its_gradient(batch, suffix, levels):
    q, prefixes, k, v, lengths = prefixed(batch, suffix)
    tensors = [t.requires_grad_() for t in (q, k, v, *prefixes[0])]
    kernels.shared_prefix_attention(q, prefixes[:levels], k, v, lengths).sum().backward()
    assert all(t.grad is not None for t in tensors[: 3 + 2 * levels])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a tensor on meta stands for one on another GPU")
def test_tensors_on_two_devices_are_refused(monkeypatch):
    """Those too that are no operands: Triton would read them where they are not."""
    monkeypatch.setattr(checks, "runs_here", lambda t: True)
    x, w, number = torch.ones(B, H, T, D), torch.ones(H, D, D), torch.zeros(B, dtype=torch.int64)
    k = x.transpose(1, 2)
    with pytest.raises(ValueError, match="expected all tensors on one device, got them on cpu and meta"):
        kernels.embedding(w[0], number.to("meta"), backend="triton")
    with pytest.raises(ValueError, match="cpu and meta"):
        mix = torch.ones(H), torch.ones(H, device="meta")
        kernels.hedgehog_attention(x, x, x, w, w, window=2, mix=mix, backend="triton")
    with pytest.raises(ValueError, match="cpu and meta"):
        kernels.sliding_step(x[:, :, 0], x[:, :, 0], x[:, :, 0], (x, x), number.to("meta"), backend="triton")
    with pytest.raises(ValueError, match="cpu and meta"):
        kernels.shared_prefix_attention(k, [], k, k, number.to("meta"), backend="triton")


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda u, w: kernels.short_conv(u, w, torch.ones(2)), r"expected bias \(4,\), got \(2,\)"),
        (lambda u, w: kernels.short_conv(u, w, torch.ones(4, 1)), r"expected bias \(4,\), got \(4, 1\)"),
        (lambda u, w: kernels.short_conv(u, w[:, :0]), r"expected u \(B, H, L\) and w \(r H, K\)"),
        (lambda u, w: kernels.short_conv(u[:, :0], w), r"expected u \(B, H, L\) and w \(r H, K\)"),
        (lambda u, w: kernels.short_conv(u, w, activation=[]), r"unknown activation \[\]"),
        (lambda u, w: kernels.fft_conv(u, w[:2], keep=2.5), "keep must be a whole number of at least 1, got 2.5"),
        (lambda u, w: kernels.short_conv_streams(u, w, streams=2.0), "streams must be a whole number of at least 1"),
        (lambda u, w: kernels.block_diagonal_matmul(u.sum(), u), r"expected x \(\.\.\., 1 x 2 = 2\), got \(\)"),
        (lambda u, w: kernels.monarch_matmul(u.sum(), u, u.mT), r"expected x \(\.\.\., 1 x 3 = 3\), got \(\)"),
        (lambda u, w: kernels.gated_mlp(u.sum(), w, w[:, :2]), r"expected x \(\.\.\., D\), up \(2 W, D\)"),
        (
            lambda u, w: kernels.sliding_step(u, u, w[:1], (u, u), torch.zeros(1, dtype=torch.int64)),
            r"v \(B, H, dv\), position",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.randn(1, 2, 3), torch.randn(4, 2))
