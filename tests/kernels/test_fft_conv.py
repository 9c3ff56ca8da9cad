"""The long convolution in Triton, every algorithm, against the dense Toeplitz matrix of the filter."""

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
        f = torch.arange(points)
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


@pytest.mark.parametrize("batch, length, taps, size", [(1, 1, 1, 16), (3, 255, 255, 16), (2, 200, 60, 32)])
def test_transform_over_blocks(where, monkeypatch, batch, length, taps, size):
    """Blocks of 16 tokens, or of two tiles of 16, instead of 128, so that short sequences have many."""
    from kernels.fft_conv import block_taps, blocks, triton

    if where["device"] == "cuda" and where["dtype"] == torch.float32:
        pytest.skip("fp32 does not take this way")

    def by_blocks(*tensors, transposed=False):
        return blocks.convolve(*tensors, transposed=transposed, size=size)

    def taps_by_blocks(*given):
        return block_taps.taps_gradient(*given, size=size)

    monkeypatch.setattr(triton, "convolve", by_blocks)
    monkeypatch.setattr(triton, "taps_gradient", taps_by_blocks)
    monkeypatch.setattr(block_taps, "TILE", 16)
    verify(kernels.fft_conv, oracle, streams(batch, 1, length, taps), wide=("k", "skip"), **where)


@pytest.mark.parametrize("length", [4100, 16500])
def test_long_filters(where, length):
    if where["dtype"] == torch.float32:
        pytest.skip("fp32 does not take this way")
    if where["device"] == "cpu" and length > 5000:
        pytest.skip("takes the interpreter too long")
    given = streams(1, 1, length, length)
    u, k, skip, pre, post = (t.to(where["device"]) for t in given.values())
    u, pre, post = (t.to(where["dtype"]) for t in (u, pre, post))
    got = kernels.fft_conv(u, k.float(), skip=skip.float(), pre_gate=pre, post_gate=post, backend="triton")
    want = kernels.fft_conv(u.double(), k, skip=skip, pre_gate=pre.double(), post_gate=post.double(), backend="torch")
    assert relative_error(got, want) < (1e-2 if where["dtype"] == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("length, keep", [(1, 1), (60, 3), (60, 20), (60, 100), (64, 64)])
def test_only_low_frequencies(length, keep):
    given = streams(2, 3, length, length)
    got = kernels.fft_conv(**given, keep=keep)
    assert relative_error(got, oracle(**given, keep=keep)) < 1e-10


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_skip_in_any_layout_and_gates_of_another_type(backend):
    given = {name: t.float().to(HERE) for name, t in streams(2, 3, 20, 20).items()}
    u, k = given["u"], given["k"]
    for skip in (k[:, 3], given["skip"][:1].expand(3)):
        got = kernels.fft_conv(u, k, skip=skip, backend=backend)
        assert relative_error(got, oracle(u.double(), k.double(), skip=skip.double())) < 1e-5
    gates = {"pre_gate": given["pre_gate"], "post_gate": given["post_gate"]}
    assert kernels.fft_conv(u.half(), k, **gates, backend=backend).dtype == torch.float16


def test_is_a_well_formed_operator():
    from kernels.fft_conv import triton

    torch.manual_seed(2)
    u, k = torch.randn(2, 2, 9, requires_grad=True, device=HERE), torch.randn(2, 9, requires_grad=True, device=HERE)
    gate = torch.randn(2, 2, 9, requires_grad=True, device=HERE)
    torch.library.opcheck(triton.forward, (u, k, None, gate, None))


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
    with pytest.raises(ValueError, match="no frequency-sparse convolution; with keep use backend='auto'"):
        kernels.fft_conv(u, k, keep=3, backend="triton")
    with pytest.raises(ValueError, match="float64 tensors; use backend='torch'"):
        kernels.fft_conv(u.double(), k, backend="triton")
