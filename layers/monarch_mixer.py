"""Monarch Mixer: gated long convolution with Monarch-structured sequence mixing.

Fu et al. 2023 (M2, arXiv 2310.12109). A Monarch matrix is a product of two block-diagonal matrices with a transpose
between them; the FFT is one, which is how the long convolution is a Monarch product itself. The causal form adds a
learned one. Position j = j0 m + j1 stands for the polynomial q_j(Z) = l_j1(Z) r_j1,j0(Z^m), where l_j1 and r_j1,j0 have
no terms below degree j1 and j0: so u(Z) = sum_j u_j q_j(Z) and its product with a filter reach only the coefficients
i >= j. Evaluating at roots of unity, multiplying and interpolating is what an FFT convolution does; so the layer
forms the coefficients of u(Z), one block-diagonal product for r and one for l, and convolves them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import Layer
from layers.filters import ImplicitFilter
from layers.gated_projection import GatedProjection, convolution_step, fft_conv_flops, to_tokens


class CausalMonarch(nn.Module):
    """The coefficients of sum_j u_j q_j(Z): a lower-triangular Monarch matrix over positions, shared by the features.

    Starts as the identity, where q_j(Z) = Z^j and the layer is a plain gated convolution.
    """

    def __init__(self, max_length: int):
        super().__init__()
        m = math.isqrt(max_length - 1) + 1  # ceil of the square root
        self.side = m
        self.right = nn.Parameter(torch.eye(m).repeat(m, 1, 1))  # r: (j1, j0, i0)
        self.left = nn.Parameter(torch.eye(m))  # l: (j1, i1)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """right (m, m, m) and left (m, m), with terms below the minimum degrees masked."""
        return self.right.triu(), self.left.triu()

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """u (B, C, T) -> (B, C, T)."""
        m, length = self.side, u.shape[-1]
        right, left = self.factors()
        rows = -(-length // m)
        u = nn.functional.pad(u, (0, rows * m - length)).unflatten(-1, (rows, m))  # (B, C, j0, j1)
        u = torch.einsum("bcxy,yxi->bciy", u, right[:, :rows, :rows].to(u.dtype))
        u = torch.einsum("bciy,yj->bcij", u, left.to(u.dtype))
        return u.flatten(-2)[..., :length]

    def row(self, position: int) -> torch.Tensor:
        """Row `position` of the dense matrix up to its diagonal, (position + 1,)."""
        right, left = self.factors()
        i0, i1 = divmod(position, self.side)
        return (right[:, :, i0] * left[:, i1].unsqueeze(-1)).t().flatten()[: position + 1]


@layers.register("monarch_mixer", kind="sequence")
class MonarchMixer(Layer):
    """y = W_o (x2 * (h conv M(x1 * v)) + h' conv x), with x1, x2, v = short convolutions of linear maps of x.

    Causal: M is the learned lower-triangular Monarch matrix of the module's docstring, h and h' reach back only. With
    causal=false, M2-BERT: M is the identity, h and h' reach both ways. Filters as M2-BERT's: width 128, a position
    code of 5, sines from frequency 10.

    State (causal): 3 dim T (inputs of M and of both convolutions; x is kept for h') and the short convolutions' last
    inputs. FLOPs a token: 8 dim^2 + 18 dim + 20 dim log2 T + 6 dim, and 4 dim sqrt(max_length) for M.
    """

    countable = False  # the long convolutions are nominally FFTs

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        causal: bool = True,
        filter_order: int = 128,
        emb_dim: int = 5,
        kernel_size: int = 3,
    ):
        super().__init__(dim, max_length)
        self.causal = causal

        def new_filter() -> ImplicitFilter:
            return ImplicitFilter(dim, max_length, filter_order=filter_order, emb_dim=emb_dim, sine_frequency=10.0)

        self.inputs = GatedProjection(dim, dim, kernel_size=kernel_size)
        self.monarch = CausalMonarch(max_length) if causal else None
        self.filters = nn.ModuleList(new_filter() for _ in range(2))  # h, h'
        self.reverse = None if causal else nn.ModuleList(new_filter() for _ in range(2))
        self.skips = nn.Parameter(torch.randn(2, dim))
        self.out = nn.Linear(dim, dim)

    def convolve(self, u: torch.Tensor, which: int) -> torch.Tensor:
        """u (B, dim, T) with filter 0 or 1, both ways where the layer is not causal."""
        length = u.shape[-1]
        y = kernels.fft_conv(u, self.filters[which](length), skip=self.skips[which])
        if self.reverse is not None:  # its first tap multiplies the next token: this one's is the forward filter's
            ahead = kernels.fft_conv(u.flip(-1), self.reverse[which](length)).flip(-1)
            y = y + F.pad(ahead[..., 1:], (0, 1))
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        x1, x2, v = self.inputs(x)  # (B, dim, T)
        w = x1 * v
        if self.monarch is not None:
            w = self.monarch(w)
        y = x2 * self.convolve(w, 0) + self.convolve(x.transpose(1, 2), 1)
        return to_tokens(self.out, y)

    def init_state(self, batch: int) -> tuple[torch.Tensor, ...]:
        """The short convolutions' past, and (B, dim, t), growing: inputs of M, of h and of h'."""
        if self.monarch is None:
            raise NotImplementedError("monarch_mixer with causal=false has no recurrent form")
        empty = self.zeros(batch, self.dim, 0)
        return self.zeros(batch, self.inputs.narrow, self.inputs.kernel_size - 1), empty, empty, empty

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        if self.monarch is None:
            raise NotImplementedError("monarch_mixer with causal=false has no recurrent form")
        (x1, x2, v), past = self.inputs.step(x_t, state[0])
        u = torch.cat([state[1], (x1 * v).unsqueeze(-1)], dim=-1)
        length = u.shape[-1]
        self.check_tokens(length)
        w = torch.cat([state[2], (u * self.monarch.row(length - 1)).sum(-1, keepdim=True)], dim=-1)
        x = torch.cat([state[3], x_t.unsqueeze(-1)], dim=-1)
        h, residual = (
            convolution_step(stream, self.filters[i](length)) + self.skips[i] * stream[..., -1]
            for i, stream in enumerate((w, x))
        )
        return self.out(x2 * h + residual), (past, u, w, x)

    def state_size(self, length: int) -> int:
        if not self.causal:
            return self.dim * length  # no recurrence: all inputs
        return self.inputs.past_size + 3 * self.dim * length

    def flops(self, length: int) -> int:
        both_ways = 1 if self.causal else 2
        long = 2 * both_ways * fft_conv_flops(self.dim, length)
        monarch = 4 * self.dim * length * self.monarch.side if self.monarch is not None else 0
        pointwise = 6 * self.dim * length  # two gates, two skips
        return self.inputs.flops(length) + long + monarch + pointwise + 2 * self.dim**2 * length
