"""What the kernels share beside their tiles: sums over programs."""

import pytest
import torch

from kernels.tiles import first_columns, sum_shares


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 7), (129, 2, 67), (1025, 3), (0, 5), (2, 8192), (2, 8193)])
def test_sums_over_programs(shape, device):
    if (device == "cuda") != torch.cuda.is_available():
        pytest.skip("kernels run on the GPU where there is one, else in the interpreter")
    partial = torch.randn(shape, device=device)
    sums, exact = sum_shares(partial), partial.double().sum(0)
    assert sums.shape == shape[1:] and sums.is_contiguous()
    assert (sums - exact).abs().max() <= 1e-5 * partial.double().abs().sum(0).max()
    assert torch.equal(sums, sum_shares(partial))
    if len(shape) == 3:
        torch.testing.assert_close(sum_shares(partial.transpose(1, 2)), sums.t())


@pytest.mark.parametrize("number", [3, 5, 8])
def test_first_columns(number):
    x = torch.randn(2, 5)
    y = first_columns(x, number)
    assert y.shape == (2, number) and y.is_contiguous()
    assert torch.equal(y[:, :5], x[:, :number]) and not y[:, 5:].any()
