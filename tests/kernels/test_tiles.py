"""What the kernels share beside their tiles: sums over programs."""

import pytest
import torch

from kernels.tiles import add_up, first_columns


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 7), (16, 1, 128), (129, 2, 67), (264, 16), (3, 40, 130)])
def test_sums_over_programs(shape, device):
    if (device == "cuda") != torch.cuda.is_available():
        pytest.skip("kernels run on the GPU where there is one, else in the interpreter")
    partial = torch.randn(shape, device=device)
    sums, exact = add_up(partial), partial.double().sum(0)
    assert sums.shape == shape[1:] and sums.is_contiguous()
    assert (sums - exact).abs().max() < 1e-5 * partial.double().abs().sum(0).max()
    assert torch.equal(sums, add_up(partial))


@pytest.mark.parametrize("number", [3, 5, 8])
def test_first_columns(number):
    x = torch.randn(2, 5)
    y = first_columns(x, number)
    assert y.shape == (2, number) and y.is_contiguous()
    assert torch.equal(y[:, :5], x[:, :number]) and not y[:, 5:].any()
