"""Taylor attention in plain torch. The polynomial is taken of the scores; features exist between chunks alone, packed.

The second-order features x_i x_j are symmetric: (d + 1)(d + 2) / 2 of d^2 + d + 1 are enough, 153 of 273 at d = 16,
with those off the diagonal scaled by sqrt(2).
"""

import torch

from kernels.checks import as_given, wide
from kernels.linear_attention.reference import causal, normalized


def taylor_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, normalize: bool, eps: float) -> torch.Tensor:
    """See kernels.taylor_attention."""
    size = packed_size(q.shape[-1])
    return causal(q, k, v, polynomial, packed_features, size, normalize=normalize, eps=eps)


def taylor_step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor, *, normalize: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels.taylor_step."""
    dtype = v.dtype
    with as_given(v):
        state = wide(state)
        q, k, v = (t.to(state.dtype) for t in (q, k, v))
        v = torch.nn.functional.pad(v, (0, 1), value=1.0) if normalize else v
        state = state + packed_features(k).unsqueeze(-1) * v.unsqueeze(-2)
        y = (packed_features(q).unsqueeze(-2) @ state).squeeze(-2)
        return (normalized(y, eps) if normalize else y).to(dtype), state


def polynomial(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """1 + x + x^2 / 2 of the scaled products: (..., T, d), (..., S, d) -> (..., T, S)."""
    x = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return 1 + x + 0.5 * x * x


def packed_features(x: torch.Tensor) -> torch.Tensor:
    """(..., d) -> (..., packed_size(d)), whose inner products are `polynomial`."""
    d = x.shape[-1]
    rows, columns = torch.triu_indices(d, d, device=x.device)
    scale = 1 - (1 - 2**-0.5) * (rows == columns).to(x.dtype)
    x = x * d**-0.25
    return torch.cat([torch.ones_like(x[..., :1]), x, x[..., rows] * x[..., columns] * scale], dim=-1)


def packed_size(d: int) -> int:
    return (d + 1) * (d + 2) // 2
