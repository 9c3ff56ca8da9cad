"""Spectra of rational transfer functions: RTF's convolution kernels from one FFT of their coefficients."""

import torch

from kernels.checks import check_whole, use_triton
from kernels.rational_spectrum import reference
from mad.registry import unknown

SEMANTICS = ("aliased", "exact")


def rational_spectrum(
    a: torch.Tensor,
    b: torch.Tensor,
    h0: torch.Tensor,
    length: int,
    *,
    semantics: str = "aliased",
    backend: str = "auto",
) -> torch.Tensor:
    """H at the n-th roots of unity, H(z) = h0 + (sum_i b_i z^-i) / (1 + sum_i a_i z^-i), i = 1 .. N.

    Parnichkun et al. 2024 (RTF, arXiv 2405.06147). The taps are `torch.fft.irfft(spectrum, n)[:, :length]` with
    n = 2 (spectrum.shape[-1] - 1): the smallest even number that is at least `length` and more than N. The cost does
    not depend on N.

    Args:
        a: (A, N), the denominators; each serves D / A neighbouring channels.
        b: (D, N).
        h0: (D,).
        length: taps wanted.
        semantics: "aliased", as published: tap t is the sum of the impulse response at t, t + n, t + 2 n, ...
            "exact": the impulse response itself, cut off after n taps. Its numerator is corrected by the N-th order
            companion matrix to the power n, taken in fp64.
        backend: "auto" | "torch" | "triton".

    Returns:
        (D, n / 2 + 1), complex64, or complex128 for fp64.

    Raises:
        ValueError: shapes that do not fit together, unknown semantics or backend.
    """
    fitting = a.dim() == b.dim() == 2 and 0 not in a.shape and a.shape[1] == b.shape[1] and not len(b) % len(a)
    if not fitting or h0.shape != b.shape[:1]:
        raise ValueError(
            f"expected a (A, N), b (D, N) and h0 (D,) with A dividing D, A and N at least 1, got "
            f"{tuple(a.shape)}, {tuple(b.shape)} and {tuple(h0.shape)}"
        )
    check_whole(length=length)
    if semantics not in SEMANTICS:
        raise unknown("semantics", semantics, SEMANTICS)
    divide = reference.divide
    if use_triton(backend, a, b, h0):
        from kernels.rational_spectrum import triton

        divide = triton.divide
    return reference.rational_spectrum(a, b, h0, length, exact=semantics == "exact", divide=divide)
