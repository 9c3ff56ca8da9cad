"""Which implementation a kernel runs: the torch reference, or Triton where there is one."""

from mad.registry import unknown

BACKENDS = ("auto", "torch")


def check_backend(backend: str) -> None:
    """Raise ValueError for a backend that does not exist. "auto" is the fastest one that can run here."""
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
