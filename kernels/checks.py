"""What every kernel checks before it starts: which implementation runs, and that shapes fit together."""

import torch

from mad.registry import unknown

BACKENDS = ("auto", "torch")


def check_backend(backend: str) -> None:
    """Raise ValueError for a backend that does not exist. "auto" is the fastest one that can run here."""
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)


def check_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise ValueError unless q and k are (B, H, T, d) and v (B, H, T, dv)."""
    if v.dim() != 4 or q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"expected q, k (B, H, T, d) and v (B, H, T, dv), got {shapes}")
