"""Short convolution in plain torch.

One channel a group leaves a grouped conv1d nothing for a matrix unit to do. So the taps become shifted sums, and where
several outputs read one input, a small matrix product over the shifted copies (`python -m mad.bench step` compares).
"""

import torch
import torch.nn.functional as F

from kernels.checks import ACTIVATIONS, as_given, wide

STREAMS = 3  # into which outputs may be cut, at most


def short_conv(
    u: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, *,
    input_bias: torch.Tensor | None = None, activation: str | None = None,
) -> torch.Tensor:  # fmt: skip
    """u (B, H, L), w (r H, K), bias (r H,), input_bias (H,) -> (B, r H, L), of u's type, summed in fp32; output c reads
    channel c mod H."""
    dtype = u.dtype
    with as_given(u):
        u = wide(u)
        if input_bias is not None:
            u = u + input_bias.to(u.dtype).unsqueeze(-1)
        w = w.to(u.dtype)  # not by way of u's own type, in which their gradients, sums over the batch, would not fit
        bias = w.new_zeros(w.shape[0]) if bias is None else bias.to(u.dtype)
        y = _ShiftedSum.apply(u, w, bias) if w.shape[0] == u.shape[1] else by_product(u, w, bias)
        return (y if activation is None else ACTIVATIONS[activation](y)).to(dtype)


def by_product(u: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The r outputs of a channel are (r, K) weights times its K shifted copies (K, B L)."""
    batch, channels, length = u.shape
    width = w.shape[-1]
    padded = F.pad(u.transpose(0, 1), (width - 1, 0))  # (H, B, L + K - 1)
    copies = torch.stack([padded[..., j : j + length] for j in range(width)], dim=1)  # (H, K, B, L)
    w, bias = w.view(-1, channels, width).transpose(0, 1), bias.view(-1, channels).t()  # (H, r, K), (H, r)
    y = torch.baddbmm(bias.unsqueeze(-1), w, copies.flatten(2))  # (H, r, B L)
    return y.transpose(0, 1).reshape(w.shape[0] * w.shape[1], batch, length).transpose(0, 1)


class _ShiftedSum(torch.autograd.Function):
    """One multiply-add a tap, in place: autograd over the shifted slices would copy the activations at each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:  # (B, H, L), (H, K), (H,)
        taps = w.flip(-1).unsqueeze(-1)  # (H, K, 1): tap j multiplies the token j steps back
        y = torch.addcmul(bias.unsqueeze(-1), u, taps[:, 0])
        for j in range(1, min(w.shape[-1], u.shape[-1])):
            y[..., j:].addcmul_(u[..., :-j], taps[:, j])
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, dy: torch.Tensor):
        u, w = ctx.saved_tensors
        length = u.shape[-1]
        taps = w.flip(-1).unsqueeze(-1)
        du, dw = dy * taps[:, 0], [torch.zeros_like(w[:, 0])] * w.shape[-1]  # taps beyond the sequence have none
        for j in range(min(w.shape[-1], length)):
            if j:
                du[..., :-j].addcmul_(dy[..., j:], taps[:, j])
            dw[-1 - j] = (dy[..., j:] * u[..., : length - j]).sum((0, 2))
        return du, torch.stack(dw, -1), dy.sum((0, 2))
