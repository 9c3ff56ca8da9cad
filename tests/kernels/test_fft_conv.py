"""The long convolution in Triton, every algorithm, against the dense Toeplitz matrix of the filter."""

from typing import Any

import pytest
import torch

import kernels
from kernels.testing import relative_error, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(u, k, skip=None, pre_gate=None, post_gate=None, keep=None):
    """Dense: y = T w with T[t, s] = k[t - s], or with `keep` the circulant matrix of what is left of the spectrum."""
    length = u.shape[-1]
    w = u if pre_gate is None else u * pre_gate
    t = torch.arange(length, device=u.device)
    lag = t[:, None] - t[None, :]
    if skip is not None:
        k = torch.cat([k[:, :1] + skip[:, None], k[:, 1:]], dim=1)
    if keep is None:
        taps = torch.nn.functional.pad(k, (0, max(0, length - k.shape[1])))
        matrix = torch.where(lag >= 0, taps[:, lag.clamp(min=0)], 0.0)  # (H, t, s)
    else:
        points = 2 * 2 ** (length - 1).bit_length()
        f = torch.arange(points, device=u.device)
        spectrum = torch.fft.fft(k[:, :length], n=points) * (torch.minimum(f, points - f) < keep)
        matrix = torch.fft.ifft(spectrum).real[:, lag % points]
    y = torch.einsum("hts,bhs->bht", matrix, w)
    return y if post_gate is None else y * post_gate


def streams(batch, channels, length, taps, gated=True):
    torch.manual_seed(0)
    u, pre, post = torch.randn(3, channels, batch, length).double().transpose(1, 2)
    k = torch.randn(channels, taps).double() * min(length, taps) ** -0.5
    given = {"u": u, "k": k, "skip": torch.randn(channels).double()}
    return given | {"pre_gate": pre, "post_gate": post} if gated else given


@pytest.mark.parametrize(
    "batch, channels, length, taps, gated",
    [(2, 1, 1, 1, True), (3, 2, 63, 63, True), (5, 3, 127, 40, False), (2, 1, 200, 300, True), (1, 1, 300, 20, False)],
)
def test_toeplitz(where, batch, channels, length, taps, gated):
    verify(kernels.fft_conv, oracle, streams(batch, channels, length, taps, gated), wide=("k", "skip"), **where)


def test_without_skip(where):
    torch.manual_seed(1)
    u, k = torch.randn(2, 2, 40).double(), torch.randn(2, 40).double() / 6
    verify(kernels.fft_conv, oracle, {"u": u, "k": k}, wide=("k",), **where)


@pytest.fixture
def in_small_blocks(monkeypatch):
    """Every convolution by transforms of small blocks; how many tokens one has."""
    from kernels.fft_conv import spectra, triton

    P, M = (64, 16) if HERE == "cuda" else (16, 16)
    monkeypatch.setattr(spectra, "factoring", lambda length: (P, M))
    monkeypatch.setattr(spectra, "PROGRAMS", 2)  # a share has several blocks
    monkeypatch.setattr(triton, "by_transforms", lambda x, taps, least: True)
    return P * M


@pytest.mark.parametrize(
    "batch, length, taps",
    [(1, 0.01, 0.01), (5, 1, 1), (3, 0.6, 0.1), (2, 0.2, 0.4), (2, 3.3, 3.3), (1, 4, 0.7), (1, 3, 2), (1, 1.5, 5)],
)
def test_transforms(half, in_small_blocks, batch, length, taps):
    """Lengths in blocks: a part of one, one, several; filters of fewer parts than there are blocks, and of more."""
    length, taps = (max(1, int(in_small_blocks * blocks)) for blocks in (length, taps))
    verify(kernels.fft_conv, oracle, streams(batch, 1, length, taps), wide=("k", "skip"), **half)


@pytest.mark.parametrize("blocks", [1, 2.5])
@pytest.mark.parametrize("u, k", [(1.0, 1e-4), (1e-3, 1.0), (30000.0, 0.1), (0.0, 1.0)])
def test_transforms_of_any_scale(half, in_small_blocks, u, k, blocks):
    """The products are fp16's: blocks and filters are scaled to it and back. A sequence of zeros stays that."""
    length = int(in_small_blocks * blocks)
    given: dict[str, Any] = streams(1, 2, length, length, gated=False)
    given |= {"u": u * given["u"].clamp(-2, 2), "k": k * given["k"], "skip": k * given["skip"]}
    if u:
        verify(kernels.fft_conv, oracle, given, wide=("k", "skip"), **half)
    else:
        given = {name: t.to(half["device"], half["dtype"]) for name, t in given.items()}
        assert not kernels.fft_conv(**given, backend="triton").any()


@pytest.mark.parametrize("u, k", [(30000.0, 1.0), (1.0, 1e-2)])
def test_constants_neither_overflow_nor_vanish(half, in_small_blocks, u, k):
    """The worst for a transform: all of it at one frequency."""
    length = 2 * in_small_blocks
    given = streams(1, 1, length, length, gated=False)
    constant = torch.full_like(given["k"], k / length)
    given |= {"u": torch.full_like(given["u"], u), "k": constant, "skip": 0 * given["skip"]}
    verify(kernels.fft_conv, oracle, given, wide=("k", "skip"), **half)


def test_a_loud_block_beside_quiet_ones(half, in_small_blocks):
    """Each block has a scale of its own, and what they send into one another comes in the same unit."""
    given = streams(1, 1, 3 * in_small_blocks, 3 * in_small_blocks, gated=False)
    given["u"][..., in_small_blocks : 2 * in_small_blocks] *= 1000
    verify(kernels.fft_conv, oracle, given, wide=("k", "skip"), **half)


def test_taps_beyond_the_sequence_cost_no_precision(half, in_small_blocks):
    """Large ones within the last block's reach: the filter's scale is of those that count."""
    length = int(1.2 * in_small_blocks)
    given = streams(1, 1, length, 2 * length, gated=False)
    given["k"][:, length:] *= 1000
    verify(kernels.fft_conv, oracle, given, wide=("k", "skip"), **half)


@pytest.mark.parametrize("k", [0.0, 1e-20])
def test_what_is_zero_stays_zero(in_small_blocks, k):
    """A sequence of zeros beside one that is not, and a filter whose products no number of two bytes holds."""
    u = torch.ones(2, 1, 2 * in_small_blocks, device=HERE, dtype=torch.float16)
    u[1] = 0
    got = kernels.fft_conv(u, torch.full((1, 40), k, device=HERE), backend="triton")
    assert torch.equal(got, torch.zeros_like(u))


@pytest.mark.parametrize(
    "length, taps, ways", [(4096, 4096, "mmm"), (4096, 1500, "tmm"), (4096, 900, "ttt"), (16400, 16400, "mmm")]
)
def test_long_filters(half, monkeypatch, length, taps, ways):
    """By the algorithms that the thresholds choose for output and the gradients of input and taps: t Toeplitz products,
    m transforms, of small blocks or of large ones. Gradients that take the interpreter too long are left out."""
    from kernels.fft_conv import monarch, monarch_taps, toeplitz

    taken = []

    def note(module, name, way):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **options: taken.append(way) or function(*given, **options))

    note(toeplitz, "convolve", "t")
    note(toeplitz, "taps_gradient", "t")
    note(monarch, "outputs", "m")
    note(monarch_taps, "taps_gradient", "m")
    gradients = length < 8192 or half["device"] == "cuda"
    given = streams(1, 1, length, taps, gated=False)
    verify(kernels.fft_conv, kernels.fft_conv, given, wide=("k", "skip"), gradients=gradients, **half)
    assert "".join(taken) == (ways if gradients else ways[0])


@pytest.mark.parametrize("length, keep", [(1, 1), (60, 3), (60, 20), (60, 100), (64, 64)])
def test_only_low_frequencies(length, keep):
    given: dict[str, Any] = streams(2, 3, length, length)
    got = kernels.fft_conv(**given, keep=keep)
    assert relative_error(got, oracle(**given, keep=keep)) < 1e-10


@pytest.mark.parametrize(
    "batch, channels, length, taps, keep, gated",
    [
        (3, 1, 1, 1, 1, True),  # of two points
        (2, 2, 63, 63, 1, True),  # the mean
        (2, 2, 63, 40, 9, False),  # rows alone
        (3, 2, 127, 127, 50, True),  # columns, too
        (1, 2, 100, 160, 128, True),  # half of the points: the most that drops any
        (2, 2, 100, 100, 129, True),  # nothing is dropped
        (2, 1, 700, 30, 90, False),
        (1, 1, 1100, 1100, 500, True),
    ],
)
def test_kept_frequencies(where, batch, channels, length, taps, keep, gated):
    given = streams(batch, channels, length, taps, gated)
    verify(kernels.fft_conv, oracle, given, wide=("k", "skip"), keep=keep, **where)


def test_kept_frequencies_without_skip(where):
    given = {name: t for name, t in streams(2, 2, 90, 70).items() if name in ("u", "k", "pre_gate")}
    verify(kernels.fft_conv, oracle, given, wide=("k",), keep=30, **where)


@pytest.fixture
def in_pieces(monkeypatch):
    """Tiles of few tokens and of few columns: programs that can neither hold a sequence of so many tokens, nor sum its
    spectrum at once."""
    from kernels.fft_conv import lowpass

    for tiles in (lowpass.READ, lowpass.WRITTEN):
        for size in tiles:
            monkeypatch.setitem(tiles, size, 64 * 32)
    monkeypatch.setitem(lowpass.BLOCK, 2, 32)
    return 64 * 32 + 50


@pytest.mark.parametrize("keep", [50, 1500, 2100])
def test_kept_frequencies_in_pieces(where, in_pieces, keep):
    given = streams(1, 1, in_pieces, 900)
    verify(kernels.fft_conv, kernels.fft_conv, given, wide=("k", "skip"), keep=keep, **where)


@pytest.mark.parametrize("length", [300, 2100])
@pytest.mark.parametrize("u, k", [(1.0, 1e-4), (1e-3, 1.0), (30000.0, 0.1), (0.0, 1.0), (1.0, 0.0)])
def test_kept_frequencies_of_any_scale(half, in_pieces, length, u, k):
    given: dict[str, Any] = streams(1, 2, length, length, gated=False)
    given |= {"u": u * given["u"].clamp(-2, 2), "k": k * given["k"], "skip": k * given["skip"]}
    if u and k:
        verify(kernels.fft_conv, kernels.fft_conv, given, wide=("k", "skip"), keep=100, **half)
    else:
        given = {name: t.to(half["device"], half["dtype"]) for name, t in given.items()}
        assert not kernels.fft_conv(**given, keep=100, backend="triton").any()


@pytest.mark.parametrize("length", [300, 40000])
def test_kept_frequencies_of_a_constant(half, length):
    """The most that one frequency can hold, which of 40,000 tokens is more than fp16 has numbers for."""
    given = streams(1, 1, length, 60, gated=False)
    given |= {"u": torch.full_like(given["u"], 30000.0), "k": given["k"] / 8, "skip": given["skip"] / 8}
    verify(kernels.fft_conv, kernels.fft_conv, given, wide=("k", "skip"), keep=5, **half)


@pytest.mark.parametrize("first", [0, 32])
def test_kept_frequencies_of_loud_and_quiet_tiles(half, in_pieces, first):
    """Each comes in a unit of its own: the loudest may be the first or another."""
    given = streams(1, 1, in_pieces, in_pieces, gated=False)
    given["u"][..., torch.arange(in_pieces) % 64 // 32 == first // 32] *= 1000
    verify(kernels.fft_conv, kernels.fft_conv, given, wide=("k", "skip"), keep=300, **half)


def test_a_filter_without_what_the_sequence_has(half):
    """A low note, and a filter of a high one with little else: products far below what the two could make."""
    given = streams(1, 1, 256, 256, gated=False)
    t = torch.arange(256).double()
    given |= {"u": (torch.cos(0.1 * t) + 1e-3 * given["u"]), "skip": 0 * given["skip"]}
    given["k"] = torch.cos(1.5 * t) + 1e-4 * given["k"]
    verify(kernels.fft_conv, kernels.fft_conv, given, wide=("k", "skip"), keep=200, **half)


@pytest.mark.parametrize("length, keep", [(1, 1), (20, 5), (100, 128), (700, 64), (4096, 64), (4096, 65), (4096, 2048)])
def test_a_plan_has_each_kept_frequency_once(length, keep):
    """And little more: what is dropped takes neither memory nor arithmetic."""
    from kernels.fft_conv.lowpass_plan import plan, weights

    p = plan(length, keep)
    weight = weights(p, torch.device("cpu"))
    f = torch.arange(p.rows)[:, None] + p.Q * (torch.arange(p.columns) - p.negative)
    assert f[weight > 0].abs().sort().values.tolist() == list(range(keep))
    assert weight.sum() * p.points == 2 * keep - 1
    assert p.rows * p.columns <= max(16, 2 * keep + p.Q)


def test_which_kept_frequencies_are_torch_s(monkeypatch):
    """By arithmetic, where FFTs of all of them cost less; so here such as are far from the border."""
    from kernels import checks
    from kernels.fft_conv import triton

    ran = []
    monkeypatch.setattr(checks, "on_card", lambda t: True)
    monkeypatch.setattr(triton, "fft_conv", lambda u, k, *, keep, **others: ran.append(keep) or u)
    for length, keep in ((256, 64), (1 << 17, 1 << 17)):
        kernels.fft_conv(torch.zeros(1, 1, length), torch.zeros(1, 4), keep=keep)
    assert ran == [64]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_skip_in_any_layout_and_gates_of_another_type(backend):
    given: dict[str, Any] = {name: t.float().to(HERE) for name, t in streams(2, 3, 20, 20).items()}
    u, k = given["u"], given["k"]
    for skip in (k[:, 3], given["skip"][:1].expand(3)):
        got = kernels.fft_conv(u, k, skip=skip, backend=backend)
        assert relative_error(got, oracle(u.double(), k.double(), skip=skip.double())) < 1e-5
    gates = {"pre_gate": given["pre_gate"], "post_gate": given["post_gate"]}
    assert kernels.fft_conv(u.half(), k, **gates, backend=backend).dtype == torch.float16


def test_the_reference_s_gates_do_not_leave_half_precision_s_range():
    ones = torch.ones(1, 1, 300, dtype=torch.float16)
    tap = torch.tensor([[1.0]])
    for length in (5, 300):  # a product, and transforms
        u = ones[..., :length]
        loud = kernels.fft_conv(300 * u, 1e-3 * tap, pre_gate=300 * u, backend="torch")
        torch.testing.assert_close(loud, 90 * u, rtol=1e-3, atol=0)
        back = kernels.fft_conv(300 * u, 1e3 * tap, post_gate=1e-3 * u, backend="torch")
        torch.testing.assert_close(back, 300 * u, rtol=1e-3, atol=0)


@pytest.mark.parametrize("batch, channels, length, taps", [(2, 3, 5, 0), (2, 3, 0, 4), (0, 3, 5, 4), (2, 0, 5, 4)])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nothing_at_all_of_one_dimension(backend, batch, channels, length, taps):
    """Without taps there is the direct path; without anything else no gradient but of zeros."""
    torch.manual_seed(3)
    u, pre, post, weight = torch.randn(4, batch, channels, length, device=HERE)
    k, skip = torch.randn(channels, taps, device=HERE), torch.randn(channels, device=HERE)
    given = [t.requires_grad_() for t in (u, k, skip, pre, post)]
    got = kernels.fft_conv(u, k, skip=skip, pre_gate=pre, post_gate=post, backend=backend)
    want = skip[:, None] * u * pre * post
    torch.testing.assert_close(got, want)
    grads = (torch.autograd.grad(y, given, weight, allow_unused=True) for y in (got, want))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


@pytest.mark.parametrize("batch, channels, length", [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
@pytest.mark.parametrize("keep", [2, 1000])
def test_low_frequencies_of_nothing(batch, channels, length, keep):
    u = torch.randn(batch, channels, length, requires_grad=True)
    k, skip = torch.randn(channels, 4, requires_grad=True), torch.randn(channels, requires_grad=True)
    y = kernels.fft_conv(u, k, skip=skip, keep=keep)
    assert y.shape == u.shape
    for t, gradient in zip((u, k, skip), torch.autograd.grad(y.sum(), (u, k, skip)), strict=True):
        assert torch.equal(gradient, torch.zeros_like(t))


@pytest.mark.parametrize("length, taps", [(127, 127), (128, 64), (200, 200), (20, 60)])
def test_the_taps_gradient_is_contiguous(length, taps):
    """As its fake says, by which compiled code goes."""
    from kernels.fft_conv import triton

    u, k = torch.randn(2, 3, length, device=HERE), torch.randn(3, taps, device=HERE)
    _, dk, _, _ = triton.backward(u, u, k, None, None, None)
    assert dk.shape == k.shape and dk.is_contiguous()


def test_tokens_further_apart_than_32_bits_reach():
    """2^31 elements from first to last, of which few are touched: the rest is no memory."""
    torch.manual_seed(4)
    far = torch.empty(2**31 + 2, dtype=torch.float16, device=HERE).as_strided((1, 2, 3), (1, 1, 2**30))
    u, k = torch.randn(1, 2, 3, device=HERE).half(), torch.randn(2, 3, device=HERE)
    far.copy_(u)
    assert torch.equal(kernels.fft_conv(far, k, backend="triton"), kernels.fft_conv(u, k, backend="triton"))


def test_is_a_well_formed_operator():
    from kernels.fft_conv import triton

    torch.manual_seed(2)
    u, k = torch.randn(2, 2, 9, requires_grad=True, device=HERE), torch.randn(2, 9, requires_grad=True, device=HERE)
    gate = torch.randn(2, 2, 9, requires_grad=True, device=HERE)
    for keep in (None, 5):
        torch.library.opcheck(triton.forward, (u, k, None, gate, None, keep))


def test_bad_input():
    u, k = torch.randn(2, 3, 8), torch.randn(3, 8)
    with pytest.raises(ValueError, match="expected pre_gate of u's shape"):
        kernels.fft_conv(u, k, pre_gate=u[:, :2])
    with pytest.raises(ValueError, match=r"expected skip \(3,\), got \(2,\)"):
        kernels.fft_conv(u, k, skip=torch.randn(2))
    with pytest.raises(ValueError, match="keep must be"):
        kernels.fft_conv(u, k, keep=0)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        kernels.fft_conv(u, k, keep=3, backend="cuda")
    with pytest.raises(ValueError, match="float64 tensors; use backend='torch'"):
        kernels.fft_conv(u.double(), k, backend="triton")
