"""The gated long convolution as operators: by Toeplitz products, by transforms for long filters, or by transforms that
compute the kept frequencies alone.

Backward keeps the inputs alone. With w = pre_gate u and c = k conv w: dpost = dy c is the forward with dy in place of
the post gate; du = pre_gate g and dpre = u g share one correlation g of post_gate dy with the taps; dk correlates w
with post_gate dy. By transforms, the spectra of these two and of the filter serve all three.
"""

import torch

from kernels.fft_conv import lowpass, lowpass_plan, monarch, monarch_taps, spectra, toeplitz
from kernels.tiles import operator, within_reach

FORWARD_FROM, BACKWARD_FROM = 2048, 1280  # taps from which transforms of whole blocks are the faster on an H200
SINGLE_UPTO = 4096  # and up to which Toeplitz products beat cuFFT where data is fp32


def pays(u: torch.Tensor, k: torch.Tensor, keep: int | None) -> bool:
    """Whether a kernel of ours is the fastest way on a GPU: cuFFT is, for long filters of fp32 data and the longest."""
    if keep is not None:
        return lowpass_plan.pays(u, keep)
    reach = min(u.shape[-1], k.shape[1])
    return reach <= (SINGLE_UPTO if u.dtype == torch.float32 else monarch.LONGEST)


def by_transforms(x: torch.Tensor, taps: int, least: int) -> bool:
    """Whether transforms are the faster on a GPU, which for whole blocks they are from `least` taps on: a Toeplitz
    product costs in proportion to tokens and taps, transforms to blocks."""
    length = x.shape[-1]
    return x.dtype != torch.float32 and min(length, taps) * length >= least * spectra.whole(length)


@operator("mad::fft_conv")
def forward(
    u: torch.Tensor,
    k: torch.Tensor,
    skip: torch.Tensor | None,
    pre_gate: torch.Tensor | None,
    post_gate: torch.Tensor | None,
    keep: int | None = None,
) -> torch.Tensor:
    if keep is not None:
        return lowpass.convolve(u, k, skip, pre_gate, post_gate, keep)
    algorithm = monarch if by_transforms(u, k.shape[1], FORWARD_FROM) else toeplitz
    return algorithm.convolve(u, k, skip, pre_gate, post_gate)


@forward.register_fake
def _(u, k, skip, pre_gate, post_gate, keep=None):
    return torch.empty_like(u)


@operator("mad::fft_conv_backward")
def backward(
    dy: torch.Tensor,
    u: torch.Tensor,
    k: torch.Tensor,
    skip: torch.Tensor | None,
    pre_gate: torch.Tensor | None,
    post_gate: torch.Tensor | None,
    keep: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """du, dk (fp32), dpre and dpost; a gate that is not there has a gradient of no elements."""
    none = u.new_empty(0)
    taps, dpost, dpre = k.shape[1], none.clone(), none
    other = None if pre_gate is None else u  # what dpre multiplies the correlation with
    if keep is not None:
        p = lowpass_plan.plan(u.shape[-1], keep)
        s, g = lowpass.spectra(u, pre_gate, p), lowpass.spectra(dy, post_gate, p)
        values = lowpass.filter_values(k, skip, u.shape[-1], p)
        if post_gate is not None:
            dpost = lowpass.outputs(s, values, dy, like=u)
        du = lowpass.outputs(g, values, pre_gate, other, like=u, ahead=True)
        dk = lowpass.taps_gradient(s, g, taps, u.shape[-1])
    elif by_transforms(u, taps, BACKWARD_FROM):
        s, g = spectra.spectra(u, pre_gate), spectra.spectra(dy, post_gate)
        values = monarch.filter_values(k, skip, s)
        if post_gate is not None:
            dpost = monarch.outputs(s, values, dy, like=u)
        du = monarch.outputs(g, values, pre_gate, other, like=u, transposed=True)
        dk = monarch_taps.taps_gradient(s, g, taps)
    else:
        w, gate, g, gate1 = u, pre_gate, dy, post_gate
        if toeplitz.gates_first(u, toeplitz.BACKWARD_GATES_UPTO):  # once for the three products
            w, gate = (u if gate is None else u * gate), None
            g, gate1 = (dy if gate1 is None else dy * gate1), None
        if post_gate is not None:
            dpost = toeplitz.convolve(w, k, skip, gate, dy)
        du = toeplitz.convolve(g, k, skip, gate1, pre_gate, other, transposed=True)
        dk = toeplitz.taps_gradient(w, g, gate, gate1, taps)
    if pre_gate is not None:
        du, dpre = du
    return du, dk, dpre, dpost


@backward.register_fake
def _(dy, u, k, skip, pre_gate, post_gate, keep=None):
    gradients = (u.new_empty(0) if gate is None else torch.empty_like(u) for gate in (pre_gate, post_gate))
    return torch.empty_like(u), k.new_empty(k.shape, dtype=torch.float32), *gradients


def save(ctx, inputs, output):
    *tensors, ctx.keep = inputs
    ctx.save_for_backward(*tensors)


def differentiate(ctx, dy):
    u, k, skip, pre_gate, post_gate = ctx.saved_tensors
    like_u = torch.empty_like(u)
    if dy.stride() != like_u.stride():  # tokens that are not neighbours in memory cost more to read than to copy once
        dy = like_u.copy_(dy)
    du, dk, dpre, dpost = backward(dy, u, k, skip, pre_gate, post_gate, ctx.keep)
    dskip = None if skip is None else dk[:, 0].to(skip.dtype)
    dpre, dpost = (None if gate is None else g for gate, g in ((pre_gate, dpre), (post_gate, dpost)))
    return du, dk.to(k.dtype), dskip, dpre, dpost, None


forward.register_autograd(differentiate, setup_context=save)


def fft_conv(u, k, *, skip, pre_gate, post_gate, keep) -> torch.Tensor:
    """See kernels.fft_conv."""
    gates = (None if gate is None else within_reach(gate.to(u.dtype), axes=1) for gate in (pre_gate, post_gate))
    skip = None if skip is None else skip.contiguous()
    return forward(within_reach(u, axes=1), k.contiguous(), skip, *gates, keep)
