"""The selective scan: a diagonal linear recurrence whose step size, input and output maps depend on the token."""

from typing import Any

import torch

from kernels.checks import use_triton
from kernels.selective_scan import reference


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Any:  # a tensor, or with return_state a pair
    """h[t] = exp(dt[t] a) h[t-1] + dt[t] u[t] b[t], y[t] = (c[t].h[t] + skip u[t]) silu(gate[t]): Mamba's scan.

    A channel has N states, with their own decays a; b and c are shared by all channels (Gu and Dao 2023, arXiv
    2312.00752, section 3.2: a is discretised exactly, b by dt b).

    Args:
        u: (B, D, L).
        dt: step sizes (B, D, L), positive: after softplus. Not checked: that would wait for the device.
        a: (D, N), negative.
        b, c: (B, N, L).
        skip: (D,), or None for 0.
        gate: (B, D, L), or None for no gate.
        initial_state: h before the first token, (B, D, N). Zeros if None.
        return_state: return h after the last token too.
        backend: "auto" | "torch" | "triton".

    Returns:
        (B, D, L), of u's type; with `return_state` the state too, (B, D, N), fp32. Everything is computed in fp32, or
        in fp64 where u is fp64. Gradients flow to all tensors, through the state as well.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or more than 65,535 sequences for Triton.
    """
    if u.dim() != 3 or a.dim() != 2:
        raise ValueError(f"expected u (B, D, L) and a (D, N), got {tuple(u.shape)} and {tuple(a.shape)}")
    batch, channels, length = u.shape
    states = a.shape[1]
    expected = {
        "dt": (dt, (batch, channels, length)),
        "a": (a, (channels, states)),
        "b": (b, (batch, states, length)),
        "c": (c, (batch, states, length)),
        "skip": (skip, (channels,)),
        "gate": (gate, (batch, channels, length)),
        "initial_state": (initial_state, (batch, channels, states)),
    }
    for name, (given, shape) in expected.items():
        if given is not None and given.shape != shape:
            raise ValueError(
                f"expected {name} {shape} for u {tuple(u.shape)} and a {tuple(a.shape)}, got {tuple(given.shape)}"
            )
    options = {"initial_state": initial_state, "return_state": return_state}
    if use_triton(backend, u, dt, a, b, c, skip, gate, initial_state):
        if u.numel() and a.numel():
            from kernels.selective_scan import triton

            return triton.selective_scan(u, dt, a, b, c, skip, gate, **options)
        if backend == "triton":
            raise ValueError(
                f"backend='triton' takes no empty tensors, got u {tuple(u.shape)} and a {tuple(a.shape)}; "
                "use backend='auto'"
            )
    return reference.selective_scan(u, dt, a, b, c, skip, gate, **options)
