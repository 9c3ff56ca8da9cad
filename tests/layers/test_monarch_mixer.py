"""Monarch Mixer: the factored product against its dense matrix, and against the polynomials it stands for."""

import math

import pytest
import torch

import layers
from layers.monarch_mixer import CausalMonarch


def random_monarch(max_length):
    torch.manual_seed(0)
    monarch = CausalMonarch(max_length).double()
    with torch.no_grad():
        for p in monarch.parameters():
            p.normal_()
    return monarch


def dense(monarch, length):
    """Column j holds the coefficients of q_j(Z) = l_j1(Z) r_j1,j0(Z^m), j = j0 m + j1."""
    m = monarch.side
    matrix = torch.zeros(m * m, m * m, dtype=torch.float64)
    for j0 in range(m):
        for j1 in range(m):
            for i0 in range(j0, m):
                for i1 in range(j1, m):
                    matrix[i0 * m + i1, j0 * m + j1] = monarch.right[j1, j0, i0] * monarch.left[j1, i1]
    return matrix[:length, :length]


@pytest.mark.parametrize("length", [1, 5, 9, 12, 16])
def test_equals_the_dense_matrix_it_factors(length):
    monarch = random_monarch(16)
    u = torch.randn(2, 3, length, dtype=torch.float64)
    want = u @ dense(monarch, length).t()
    with torch.no_grad():
        assert torch.allclose(monarch(u), want, atol=1e-12)
        for t in range(length):
            assert torch.allclose(monarch.row(t), dense(monarch, length)[t, : t + 1], atol=1e-12)


def test_is_polynomial_multiplication_at_roots_of_unity():
    """u(Z) = sum_j u_j q_j(Z) and a filter, evaluated at 2N-th roots of unity, multiplied, interpolated: the core."""
    monarch = random_monarch(16)
    n, m = 16, monarch.side
    u, h = torch.randn(2, n, dtype=torch.float64)
    z = torch.exp(2j * math.pi * torch.arange(2 * n, dtype=torch.float64) / (2 * n))
    right, left = (f.detach().to(torch.complex128) for f in monarch.factors())
    powers = torch.stack([z**i for i in range(m)])  # (m, 2N)
    far = torch.stack([z ** (m * i) for i in range(m)])
    value = sum(
        u[j0 * m + j1] * (left[j1] @ powers) * (right[j1, j0] @ far) for j0 in range(m) for j1 in range(m)
    ) * sum(h[i] * z**i for i in range(n))
    coefficients = torch.stack([(value * z**-i).mean() for i in range(n)]).real
    coefficient_space = monarch(u.view(1, 1, n)).detach().view(n)
    want = torch.stack([sum(h[j] * coefficient_space[t - j] for j in range(t + 1)) for t in range(n)])
    assert torch.allclose(coefficients, want, atol=1e-10)


def test_starts_as_the_identity():
    u = torch.randn(2, 3, 14)
    assert torch.equal(CausalMonarch(14)(u), u)


def test_the_bidirectional_form_sees_both_ways():
    torch.manual_seed(0)
    layer = layers.build({"name": "monarch_mixer", "causal": False}, 16, 12)
    x = torch.randn(1, 12, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 6].sum(), x)
    assert (gradient[0].abs().sum(-1) > 0).all()
    with pytest.raises(NotImplementedError, match="no recurrent form"):
        layer.init_state(1)


def test_looking_ahead_a_token_sees_itself_once():
    """M2-BERT: tap j of the reverse filter multiplies the token j + 1 ahead."""
    torch.manual_seed(0)
    layer = layers.build({"name": "monarch_mixer", "causal": False}, 4, 9).double()
    u = torch.randn(1, 4, 9, dtype=torch.float64)
    back, ahead = layer.filters[0](9), layer.reverse[0](9)
    want = layer.skips[0, :, None] * u[0]
    for t in range(9):
        for s in range(9):
            tap = back[:, t - s] if s <= t else ahead[:, s - t - 1]
            want = want + torch.nn.functional.pad((tap * u[0, :, s])[:, None], (t, 8 - t))
    assert torch.allclose(layer.convolve(u, 0)[0], want, atol=1e-10)
