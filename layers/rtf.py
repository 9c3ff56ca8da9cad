"""RTF: a state-space model parametrised by its rational transfer function.

Parnichkun et al. 2024 (arXiv 2405.06147). Per channel H(z) = h0 + (sum_n b_n z^-n) / (1 + sum_n a_n z^-n), n = 1..N:
the taps of the convolution come from one FFT of the zero-padded coefficients, whatever N.

The FFT samples H at the roots of unity, so its taps are those of the recurrence folded onto its length (aliased). They
are always taken at `max_length` (or the next even number), hence do not depend on the length of the sequence at hand;
and the recurrence that has exactly these taps has the same a, with b and h0 changed as in `recurrence`.
"""

from typing import Any

import torch
from torch import nn

import kernels
import layers
from layers.base import Layer, positive, split_heads
from layers.filters import registry as filters
from layers.gated_projection import fft_conv_flops
from mad.registry import unknown

INITS = ("zeros", "xavier", "montel")
CONSTRAINTS = ("none", "l1_montel")


@filters.register("rtf")
class RationalFilter(nn.Module):
    """Taps of rational transfer functions, (channels, length). Parameters: (channels + num_a) d_state + channels.

    Args:
        d_state: order N of the transfer function.
        num_a: number of denominators; each serves channels / num_a neighbouring channels.
        init: of a and b: "zeros", "xavier" uniform within 1 / sqrt(N) (poles may lie outside the unit circle), "montel"
            uniform within 1 / N (they lie inside).
        constraint: "none", or "l1_montel": a / (sum|a| + |s| + 1e-6) with a learned s, which keeps every pole inside.
    """

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        d_state: int = 16,
        num_a: int = 1,
        init: str = "zeros",
        constraint: str = "none",
    ):
        super().__init__()
        positive(d_state=d_state)
        split_heads(channels, num_a, "channels", "num_a")
        if init not in INITS:
            raise unknown("init of rtf:", init, INITS)
        if constraint not in CONSTRAINTS:
            raise unknown("constraint of rtf:", constraint, CONSTRAINTS)
        self.channels, self.d_state, self.num_a = channels, d_state, num_a
        self.max_length = max_length
        bound = {"zeros": 0.0, "xavier": d_state**-0.5, "montel": 1 / d_state}[init]
        self.a = nn.Parameter(torch.empty(num_a, d_state).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(channels, d_state).uniform_(-bound, bound))
        self.h0 = nn.Parameter(torch.randn(channels))
        self.slack = nn.Parameter(torch.rand(num_a, 1)) if constraint == "l1_montel" else None

    def denominator(self) -> torch.Tensor:
        """a_1 .. a_N, (num_a, N), under the constraint."""
        if self.slack is None:
            return self.a
        return self.a / (self.a.abs().sum(-1, keepdim=True) + self.slack.abs() + 1e-6)

    def forward(self, length: int) -> torch.Tensor:
        spectrum = kernels.rational_spectrum(self.denominator(), self.b, self.h0, self.max_length)
        return torch.fft.irfft(spectrum)[:, :length]

    @torch.no_grad()
    def recurrence(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """a (channels, N), b (channels, N) and h0 (channels,) of the recurrence whose taps `forward` gives, at
        least fp32.

        Folded onto L taps, b A^(t-1) sums to b (I - A^L)^-1 A^(t-1), and what falls on tap 0 adds to h0.
        """
        a = self.denominator().double()
        order = a.shape[-1]
        folded = max(self.max_length, order + 1)
        folded += folded % 2
        companion = torch.diag_embed(torch.ones(order - 1, dtype=a.dtype, device=a.device), -1).repeat(len(a), 1, 1)
        companion[:, 0] = -a  # (num_a, N, N)
        power = torch.linalg.matrix_power(companion, folded - 1)  # A^(L-1)
        fold = torch.eye(order, dtype=a.dtype, device=a.device) - power @ companion
        b = self.b.double().unflatten(0, (self.num_a, -1))  # (num_a, channels / num_a, N)
        b = torch.linalg.solve(fold, b, left=False)
        h0 = self.h0.double() + (b @ power[:, :, :1]).flatten()
        dtype = kernels.wide(self.a).dtype
        return a.repeat_interleave(b.shape[1], dim=0).to(dtype), b.flatten(0, 1).to(dtype), h0.to(dtype)


@layers.register("rtf", kind="sequence")
class RTF(Layer):
    """y = W GELU(h conv x) + c, with the taps h of a rational transfer function for each feature.

    Source and formula: the module's docstring. Options are those of the filter; see `RationalFilter`. State: d_state
    dim. FLOPs a token: 10 dim log2 T + 2 dim^2, whatever d_state.
    """

    countable = False  # the long convolution is nominally an FFT

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        d_state: int = 16,
        num_a: int = 1,
        init: str = "zeros",
        constraint: str = "none",
    ):
        super().__init__(dim, max_length)
        self.filter = RationalFilter(dim, max_length, d_state=d_state, num_a=num_a, init=init, constraint=constraint)
        self.out = nn.Linear(dim, dim)
        self.frozen: tuple[torch.Tensor, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_length(x)
        y = kernels.fft_conv(x.transpose(1, 2), self.filter(x.shape[1])).transpose(1, 2)
        return self.out(nn.functional.gelu(y))

    def init_state(self, batch: int) -> tuple[torch.Tensor]:
        """The last d_state values of u / (1 + a), (B, dim, N), newest first; the recurrence is computed here, once,
        and `step` gives the filter no gradient."""
        self.frozen = self.filter.recurrence()
        return (kernels.wide(self.zeros(batch, self.dim, self.filter.d_state)),)

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        if self.frozen is None:
            raise RuntimeError("call init_state before step: it computes the recurrence")
        a, b, h0 = self.frozen
        (s,) = state
        y = (b * s).sum(-1) + h0 * x_t
        newest = x_t - (a * s).sum(-1)
        s = torch.cat([newest.unsqueeze(-1), s[..., :-1]], dim=-1)
        return self.out(nn.functional.gelu(y.to(x_t.dtype))), (s,)

    def state_size(self, length: int) -> int:
        return self.dim * self.filter.d_state

    def flops(self, length: int) -> int:
        return fft_conv_flops(self.dim, length) + 2 * self.dim**2 * length
