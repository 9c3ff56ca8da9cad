"""The taps' gradient by transforms of blocks (`spectra.py`): spectra of input and cotangent, and their products.

With S_b the spectra of the gated input's blocks and G_b those of the gated cotangent's, K'_d has the gradient
Z_d = sum_b conj(S_(b - d)) G_b, summed over the batch; and as K'_d = K_d - j K_(d - 1), K_d has Z_d + j Z_(d + 1). The
spectra travel through memory, in fp16: both and the sums at once would not fit into registers.
"""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from kernels.fft_conv.monarch import reach
from kernels.fft_conv.spectra import Spectra, turn

COLUMNS = 1024  # roots that a program of products takes


@triton.jit
def products_kernel(s, s_scales, g, g_scales, sums, B, blocks, SIZE: tl.constexpr, BC: tl.constexpr):
    """sums[h, d, re | im] = sum_b conj(s[h, :, b - d]) g[h, :, b] over batch and blocks, of BC roots."""
    d = tl.program_id(2)
    h = tl.program_id(0).to(tl.int64)
    root = tl.program_id(1) * BC + tl.arange(0, BC)
    pairs = blocks - d
    real = tl.zeros((BC,), tl.float32)
    imag = tl.zeros((BC,), tl.float32)
    for pair in range(0, B * pairs):
        before = h * B * blocks + pair // pairs * blocks + pair % pairs
        now = before + d
        both = tl.load(s_scales + before) * tl.load(g_scales + now)
        s_real = tl.load(s + before * 2 * SIZE + root) * both
        s_imag = tl.load(s + before * 2 * SIZE + SIZE + root) * both
        g_real = tl.load(g + now * 2 * SIZE + root)
        g_imag = tl.load(g + now * 2 * SIZE + SIZE + root)
        real += s_real * g_real + s_imag * g_imag
        imag += s_real * g_imag - s_imag * g_real
    place = sums + (h * tl.num_programs(2) + d) * 2 * SIZE + root
    tl.store(place, real)
    tl.store(place + SIZE, imag)


def taps_gradient(s: Spectra, g: Spectra, taps: int) -> torch.Tensor:
    """dk (H, taps), fp32, of the convolution of what has the spectra s, for the cotangent that has g."""
    channels, batch, blocks, _, P, M = s.values.shape
    n = P * M
    here, parts = reach(taps, n, blocks)
    sums = torch.empty(channels, parts, 2, P, M, dtype=torch.float32, device=s.values.device)
    columns = min(COLUMNS, n)
    products_kernel[(channels, n // columns, parts)](
        s.values, s.ups, g.values, g.ups, sums, batch, blocks, SIZE=n, BC=columns, num_warps=4
    )
    z = torch.view_as_complex(sums.permute(0, 1, 4, 3, 2).contiguous()).flatten(2)  # (H, parts, n)
    values = z[:, :here].clone()
    values[:, : parts - 1] += 1j * z[:, 1:]
    dk = (torch.fft.fft(values, norm="forward") * turn(n, z.device).conj()).real.flatten(1)[:, : min(taps, s.length)]
    return torch.nn.functional.pad(dk, (0, taps - dk.shape[1]))
