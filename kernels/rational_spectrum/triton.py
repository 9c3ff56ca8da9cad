"""The division of RTF's spectra in Triton: B / A + h0 in one pass, and its gradients in another.

Triton has no complex numbers; they are read as pairs (real, imaginary). A program owns one denominator and a block of
frequencies and walks over the channels that share it, so that their gradients are summed in order.
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.tiles import operator

BLOCK = 256  # frequencies


@triton.jit
def _load(x, row, f, F):
    place = x + (row * F + f) * 2
    return tl.load(place, mask=f < F, other=1.0), tl.load(place + 1, mask=f < F, other=0.0)


@triton.jit
def divide_kernel(below, above, h0, out, D, F, GROUP, BLOCK: tl.constexpr):
    d = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ar, ai = _load(below, d // GROUP, f, F)
    br, bi = _load(above, d, f, F)
    inverse = 1 / (ar * ar + ai * ai)
    place = out + (d * F + f) * 2
    tl.store(place, (br * ar + bi * ai) * inverse + tl.load(h0 + d), mask=f < F)
    tl.store(place + 1, (bi * ar - br * ai) * inverse, mask=f < F)


@triton.jit
def gradient_kernel(below, above, dy, d_below, d_above, d_h0, D, F, GROUP, BLOCK: tl.constexpr):
    """dB = conj(1 / A) dy, dA = -sum conj(B / A^2) dy, and this block of frequencies' part of dh0 (D, blocks)."""
    a = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ar, ai = _load(below, a, f, F)
    norm = 1 / (ar * ar + ai * ai)
    ir, ii = ar * norm, ai * norm  # conj(1 / A)
    sum_r = tl.zeros((BLOCK,), tl.float32)
    sum_i = tl.zeros((BLOCK,), tl.float32)
    for channel in range(0, GROUP):
        d = a * GROUP + channel
        br, bi = _load(above, d, f, F)
        place = dy + (d * F + f) * 2
        gr = tl.load(place, mask=f < F, other=0.0)
        gi = tl.load(place + 1, mask=f < F, other=0.0)
        tr, ti = gr * ir - gi * ii, gr * ii + gi * ir
        place = d_above + (d * F + f) * 2
        tl.store(place, tr, mask=f < F)
        tl.store(place + 1, ti, mask=f < F)
        qr, qi = br * ir + bi * ii, br * ii - bi * ir  # conj(B / A) = conj(B) conj(1 / A)
        sum_r += tr * qr - ti * qi
        sum_i += tr * qi + ti * qr
        tl.store(d_h0 + d * tl.num_programs(1) + tl.program_id(1), tl.sum(gr, 0))
    place = d_below + (a * F + f) * 2
    tl.store(place, -sum_r, mask=f < F)
    tl.store(place + 1, -sum_i, mask=f < F)


@operator("mad::rational_division")
def division(below: torch.Tensor, above: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    """below (A, F, 2), above (D, F, 2), h0 (D,) -> (D, F, 2), fp32."""
    channels, frequencies, _ = above.shape
    out = torch.empty_like(above)
    grid = (channels, triton.cdiv(frequencies, BLOCK))
    divide_kernel[grid](below, above, h0, out, channels, frequencies, channels // below.shape[0], BLOCK=BLOCK)
    return out


@division.register_fake
def _(below, above, h0):
    return torch.empty_like(above)


@operator("mad::rational_division_backward")
def division_backward(
    below: torch.Tensor, above: torch.Tensor, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    channels, frequencies, _ = above.shape
    d_below, d_above = torch.empty_like(below), torch.empty_like(above)
    blocks = triton.cdiv(frequencies, BLOCK)
    d_h0 = above.new_empty(channels, blocks)
    gradient_kernel[(below.shape[0], blocks)](
        below, above, dy, d_below, d_above, d_h0, channels, frequencies, channels // below.shape[0], BLOCK=BLOCK
    )
    return d_below, d_above, d_h0.sum(1)


@division_backward.register_fake
def _(below, above, dy):
    return torch.empty_like(below), torch.empty_like(above), above.new_empty(above.shape[0])


def save(ctx, inputs, output):
    below, above, _ = inputs
    ctx.save_for_backward(below, above)


def differentiate(ctx, dy):
    return division_backward(*ctx.saved_tensors, dy.contiguous())


division.register_autograd(differentiate, setup_context=save)


def divide(below: torch.Tensor, above: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    """See reference.divide."""
    below, above = (torch.view_as_real(t.contiguous()) for t in (below, above))
    return torch.view_as_complex(division(below, above, h0.contiguous()))
