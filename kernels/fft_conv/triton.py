"""The gated long convolution as operators: by Toeplitz products, a whole transform a program, or one over blocks.

Backward keeps the inputs alone. With w = pre_gate u and c = k conv w: dpost = dy c is the forward with dy in place of
the post gate; du = pre_gate g and dpre = u g share one correlation g of post_gate dy with the taps.
"""

from typing import Any

import torch

from kernels.fft_conv import block_taps, blocks, monarch, toeplitz
from kernels.tiles import operator

MONARCH_FROM = 1280  # taps in reach from which a whole transform beats the Toeplitz product on an H200
BLOCKS_FROM = 8192  # and from which, beyond that transform's lengths, the one over blocks does on an H100
TAPS_FROM = 4096  # and from which it does for the gradient of the taps
SINGLE_UPTO = 4096  # and up to which that beats cuFFT where data is fp32


def pays(u: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether a kernel of ours is the fastest way on a GPU: cuFFT is, for long filters of fp32 data and the longest."""
    reach = min(u.shape[-1], k.shape[1])
    return reach <= (SINGLE_UPTO if u.dtype == torch.float32 else blocks.LONGEST)


def way(x: torch.Tensor, taps: int, blocks_from: int) -> str:
    """The fastest algorithm on a GPU: "toeplitz", "monarch" or "blocks"."""
    length, reach = x.shape[-1], min(x.shape[-1], taps)
    if x.dtype == torch.float32:
        return "toeplitz"
    if monarch.LONGER_THAN < length <= monarch.LONGEST and reach >= MONARCH_FROM:
        return "monarch"
    return "blocks" if length <= blocks.LONGEST and reach >= blocks_from else "toeplitz"


def convolve(x, k, skip, gate, gate1, gate2=None, *, transposed=False) -> Any:
    """gate1 * conv(gate * x, k), and with gate2 also gate2 * the same, by the fastest algorithm."""
    ways = {"toeplitz": toeplitz.convolve, "monarch": monarch.convolve, "blocks": blocks.convolve}
    algorithm = ways[way(x, k.shape[1], BLOCKS_FROM)]
    return algorithm(x, k, skip, gate, gate1, gate2, transposed=transposed)


def taps_gradient(x, dy, gate, gate1, taps: int) -> torch.Tensor:
    """dk (H, taps), fp32, by the fastest algorithm."""
    ways = {
        "toeplitz": toeplitz.taps_gradient,
        "monarch": monarch.taps_gradient,
        "blocks": block_taps.taps_gradient,
    }
    return ways[way(x, taps, TAPS_FROM)](x, dy, gate, gate1, taps)


@operator("mad::fft_conv")
def forward(
    u: torch.Tensor,
    k: torch.Tensor,
    skip: torch.Tensor | None,
    pre_gate: torch.Tensor | None,
    post_gate: torch.Tensor | None,
) -> torch.Tensor:
    return convolve(u, k, skip, pre_gate, post_gate)


@forward.register_fake
def _(u, k, skip, pre_gate, post_gate):
    return torch.empty_like(u)


@operator("mad::fft_conv_backward")
def backward(
    dy: torch.Tensor,
    u: torch.Tensor,
    k: torch.Tensor,
    skip: torch.Tensor | None,
    pre_gate: torch.Tensor | None,
    post_gate: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """du, dk (fp32), dpre and dpost; a gate that is not there has a gradient of no elements."""
    none = u.new_empty(0)
    w, gate, g, gate1 = u, pre_gate, dy, post_gate
    if toeplitz.gates_first(u):  # once for the three products
        w, gate = (u if gate is None else u * gate), None
        g, gate1 = (dy if gate1 is None else dy * gate1), None
    dpost = none.clone() if post_gate is None else convolve(w, k, skip, gate, dy)
    if pre_gate is None:
        du, dpre = convolve(g, k, skip, gate1, None, transposed=True), none
    else:
        du, dpre = convolve(g, k, skip, gate1, pre_gate, u, transposed=True)
    dk = taps_gradient(w, g, gate, gate1, k.shape[1])
    return du, dk, dpre, dpost


@backward.register_fake
def _(dy, u, k, skip, pre_gate, post_gate):
    gradients = (u.new_empty(0) if gate is None else torch.empty_like(u) for gate in (pre_gate, post_gate))
    return torch.empty_like(u), k.new_empty(k.shape, dtype=torch.float32), *gradients


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def differentiate(ctx, dy):
    u, k, skip, pre_gate, post_gate = ctx.saved_tensors
    like_u = torch.empty_like(u)
    if dy.stride() != like_u.stride():  # tokens that are not neighbours in memory cost more to read than to copy once
        dy = like_u.copy_(dy)
    du, dk, dpre, dpost = backward(dy, u, k, skip, pre_gate, post_gate)
    dskip = None if skip is None else dk[:, 0].to(skip.dtype)
    dpre, dpost = (None if gate is None else g for gate, g in ((pre_gate, dpre), (post_gate, dpost)))
    return du, dk.to(k.dtype), dskip, dpre, dpost


forward.register_autograd(differentiate, setup_context=save)


def fft_conv(u, k, *, skip, pre_gate, post_gate) -> torch.Tensor:
    """See kernels.fft_conv."""
    pre_gate, post_gate = (None if gate is None else gate.to(u.dtype) for gate in (pre_gate, post_gate))
    skip = None if skip is None else skip.contiguous()
    return forward(u, k.contiguous(), skip, pre_gate, post_gate)
