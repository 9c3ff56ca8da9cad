"""The convolutions against their definition, a literal sum, in fp64; gradients against finite differences."""

import pytest
import torch

import kernels
from kernels.fft_conv import reference as fft_reference
from kernels.short_conv import reference as short_reference


def literal_convolution(u, k):
    """y[t] = sum_j k[j] u[t - j], one term after the other."""
    y = torch.zeros_like(u)
    for t in range(u.shape[-1]):
        for j in range(min(t + 1, k.shape[-1])):
            y[..., t] += k[:, j] * u[..., t - j]
    return y


def relative_error(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("length, taps", [(1, 1), (2, 2), (7, 7), (16, 5), (16, 40), (33, 33), (64, 3)])
def test_every_algorithm_equals_the_sum(length, taps):
    torch.manual_seed(0)
    u = torch.randn(3, 4, length, dtype=torch.float64)
    k = torch.randn(4, taps, dtype=torch.float64)
    want = literal_convolution(u, k)
    short = k[:, :length]
    for got in (kernels.fft_conv(u, k), fft_reference.by_toeplitz(u, short), fft_reference.by_fft(u, short)):
        assert relative_error(got, want) < 1e-12
    assert relative_error(torch.zeros_like(want), want) > 0.5  # the metric does see a wrong output


@pytest.mark.parametrize("length", [31, 401])
def test_gates_and_skip(length):
    torch.manual_seed(1)
    u, pre, post = torch.randn(3, 2, 4, length, dtype=torch.float64)
    k, skip = torch.randn(4, length, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    w = pre * u
    want = post * (literal_convolution(w, k) + skip[:, None] * w)
    assert relative_error(kernels.fft_conv(u, k, skip=skip, pre_gate=pre, post_gate=post), want) < 1e-12


@pytest.mark.parametrize("algorithm", [fft_reference.by_toeplitz, fft_reference.by_fft])
def test_long_convolution_gradients(algorithm):
    torch.manual_seed(2)
    u = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    k = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(algorithm, (u, k))


def test_long_convolution_keeps_fp32_under_bf16_input():
    torch.manual_seed(3)
    u, k = torch.randn(2, 4, 50), torch.randn(4, 50)
    got = kernels.fft_conv(u.bfloat16(), k)
    assert got.dtype == torch.bfloat16
    assert relative_error(got.double(), literal_convolution(u.bfloat16().double(), k.double())) < 4e-3


@pytest.mark.parametrize("n", [1, 2, 3, 127, 253, 1000, 2047, 4097])
def test_friendly_lengths(n):
    length = fft_reference.friendly_length(n)
    assert n <= length < 1.34 * n + 2 and length % 2 == 0
    for prime in (2, 3, 5):
        while length % prime == 0:
            length //= prime
    assert length == 1


@pytest.mark.parametrize("multiplier", [1, 4])
@pytest.mark.parametrize("length, width", [(1, 3), (2, 3), (17, 1), (17, 3), (17, 4)])
def test_short_convolution_is_conv1d(multiplier, length, width):
    torch.manual_seed(4)
    u = torch.randn(2, 5, length, dtype=torch.float64)
    w, bias = torch.randn(5 * multiplier, width, dtype=torch.float64), torch.randn(5 * multiplier, dtype=torch.float64)
    tiled = u.repeat(1, multiplier, 1)
    want = torch.nn.functional.conv1d(tiled, w.unsqueeze(1), bias, padding=width - 1, groups=len(w))[..., :length]
    assert relative_error(kernels.short_conv(u, w, bias), want) < 1e-12
    activated = kernels.short_conv(u, w, bias, activation="silu")
    assert relative_error(activated, torch.nn.functional.silu(want)) < 1e-12


@pytest.mark.parametrize("multiplier", [1, 3])
def test_short_convolution_gradients(multiplier):
    torch.manual_seed(5)
    u = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3 * multiplier, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(short_reference.short_conv, (u, w))


def test_block_diagonal_equals_the_dense_matrix():
    torch.manual_seed(6)
    x, w = torch.randn(2, 3, 12, dtype=torch.float64), torch.randn(4, 3, 5, dtype=torch.float64)
    assert relative_error(kernels.block_diagonal_matmul(x, w), x @ torch.block_diag(*w)) < 1e-12


def test_bad_input():
    u = torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match="unknown backend 'tritn'"):
        kernels.fft_conv(u, torch.randn(3, 8), backend="tritn")
    with pytest.raises(ValueError, match=r"expected u \(B, H, L\)"):
        kernels.fft_conv(u, torch.randn(4, 8))
    with pytest.raises(ValueError, match="r H, K"):
        kernels.short_conv(u, torch.randn(4, 3))
    with pytest.raises(ValueError, match="did you mean 'silu'"):
        kernels.short_conv(u, torch.randn(3, 3), activation="sil")
    with pytest.raises(ValueError, match=r"4 x 3 = 12\), got"):
        kernels.block_diagonal_matmul(torch.randn(2, 8), torch.randn(4, 3, 5))
