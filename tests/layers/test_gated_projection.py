"""The gated projection: on a GPU the convolution adds the bias of the map whose output it reads."""

import pytest
import torch

import kernels
from layers.gated_projection import GatedProjection, from_tokens


def test_the_bias_of_the_map_may_be_left_to_the_convolution():
    torch.manual_seed(0)
    inputs, x = GatedProjection(16, 16, groups=4), torch.randn(2, 9, 16)
    z = from_tokens(inputs.linear, x, biased=False)
    streams = kernels.short_conv_streams(z, inputs.taps, inputs.bias, streams=3, input_bias=inputs.linear.bias)
    for got, want in zip(streams, inputs(x), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.gpu
def test_a_gpu_gives_what_a_cpu_gives():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(1)
    inputs, x = GatedProjection(16, 16, groups=4), torch.randn(2, 9, 16)
    found = []
    for device in ("cpu", "cuda"):
        there, given = inputs.to(device), x.to(device).requires_grad_()
        streams = there(given)
        loss = sum((stream**2).sum() for stream in streams)
        gradients = torch.autograd.grad(loss, [given, *there.parameters()])
        found.append([t.detach().cpu() for t in (*streams, *gradients)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
