"""Shared-prefix attention against each sequence's softmax over its own concatenated keys."""

import pytest
import torch

from kernels.shared_prefix_attention import shared_prefix_attention
from kernels.testing import relative_error, verify

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def oracle(q, prefixes, suffix_k, suffix_v, suffix_lengths):
    """One query at a time."""
    batch, n, query_heads, d = q.shape
    group = query_heads // suffix_k.shape[2]
    y = torch.zeros_like(q)
    for b in range(batch):
        keys, values = [], []
        for k, v, *lengths in prefixes:
            i = b // (batch // k.shape[0])
            end = lengths[0][i] if lengths else k.shape[1]
            keys.append(k[i, :end])
            values.append(v[i, :end])
        keys = torch.cat([*keys, suffix_k[b, : suffix_lengths[b]]])
        values = torch.cat([*values, suffix_v[b, : suffix_lengths[b]]])
        for h in range(query_heads):
            if len(keys):
                weight = torch.softmax(q[b, :, h] @ keys[:, h // group].T / d**0.5, dim=-1)
                y[b, :, h] = weight @ values[:, h // group]
    return y


def example(sizes, batch, n=1, heads=(2, 2), suffix=9, d=16, lengths=None):
    """sizes: (S, P) of each level, or (S, P, lengths)."""
    torch.manual_seed(0)
    given = {"q": torch.randn(batch, n, heads[0], d).double()}
    for i, (shared, prefix, *ragged) in enumerate(sizes):
        given[f"k{i}"], given[f"v{i}"] = torch.randn(2, shared, prefix, heads[1], d).double()
        if ragged:
            given[f"lengths{i}"] = torch.tensor(ragged[0])
    given["suffix_k"], given["suffix_v"] = torch.randn(2, batch, suffix, heads[1], d).double()
    given["suffix_lengths"] = torch.randint(0, suffix + 1, (batch,)) if lengths is None else torch.tensor(lengths)
    return given


def gathered(function):
    """`function` of a flat dictionary of tensors."""

    def call(q, suffix_k, suffix_v, suffix_lengths, **rest):
        levels = sorted({name.lstrip("kvlengths") for name in rest if name[0] in "kv"})
        prefixes = [
            tuple(rest[part + i] for part in ("k", "v", "lengths") if part + i in rest) for i in levels
        ]  # fmt: skip
        options = {"backend": rest["backend"]} if "backend" in rest else {}
        return function(q, prefixes, suffix_k, suffix_v, suffix_lengths, **options)

    return call


EXAMPLES = {
    "one prefix": example([(1, 70)], batch=3),
    "tree, two tokens": example([(1, 20), (2, 33), (6, 5)], batch=6, n=2, d=24),
    "groups, width 100": example([(2, 40)], batch=4, heads=(6, 2), d=100),
    "ragged": example([(2, 40, [0, 33]), (1, 8)], batch=4, heads=(3, 1)),
    "empty suffixes": example([(1, 17)], batch=3, suffix=0, lengths=[0, 0, 0]),
    "nothing at all": example([(1, 0)], batch=2, suffix=4, lengths=[0, 3]),
    "no prefix": example([], batch=2, suffix=65, lengths=[65, 1]),
    "many rows": example([(1, 150)], batch=40),
    "many rows, ragged": example([(2, 150, [0, 128]), (1, 40)], batch=66, heads=(2, 1), d=32, suffix=3),
    "shares of the keys": example([(1, 1100)], batch=2, lengths=[9, 2]),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_equals_attention_over_copies(where, name):
    given = EXAMPLES[name]
    verify(gathered(shared_prefix_attention), gathered(oracle), given, gradients=False, **where)


@pytest.mark.parametrize("name", EXAMPLES)
def test_reference_is_exact(name):
    got, want = gathered(shared_prefix_attention)(**EXAMPLES[name]), gathered(oracle)(**EXAMPLES[name])
    assert relative_error(got, want) < 1e-10


def test_reference_has_gradients():
    given = example([(2, 7), (1, 3)], batch=2, suffix=4, lengths=[4, 1])
    leaves = [t.requires_grad_() for t in given.values() if t.is_floating_point()]
    got = torch.autograd.grad(gathered(shared_prefix_attention)(**given).square().sum(), leaves)
    want = torch.autograd.grad(gathered(oracle)(**given).square().sum(), leaves)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-10
    with pytest.raises(ValueError, match="no gradients here"):
        gathered(shared_prefix_attention)(
            **{n: t.to(HERE, torch.float32 if t.is_floating_point() else t.dtype) for n, t in given.items()},
            backend="triton",
        )


def test_is_a_well_formed_operator():
    from kernels.shared_prefix_attention import triton

    q, k, v, *suffix = example([(1, 5)], batch=2).values()
    q, k, v, suffix_k, suffix_v = (t.float().to(HERE) for t in (q, k, v, *suffix[:2]))
    lengths = suffix[2].to(HERE)
    torch.library.opcheck(triton.attend, (q, [k], [v], [lengths[:0]], suffix_k, suffix_v, lengths))


def test_bad_input():
    q, k, v, suffix_k, suffix_v, lengths = example([(2, 5)], batch=4).values()
    with pytest.raises(ValueError, match=r"prefixes\[0\]: 3 prefixes do not divide the 4 sequences"):
        shared_prefix_attention(q, [(k[[0, 1, 1]], v[[0, 1, 1]])], suffix_k, suffix_v, lengths)
    with pytest.raises(ValueError, match=r"prefixes\[0\]: expected k, v \(S, P, 2, 16\)"):
        shared_prefix_attention(q, [(k[..., :8], v[..., :8])], suffix_k, suffix_v, lengths)
    with pytest.raises(ValueError, match="the 2 query heads must be a multiple of the 3 key heads"):
        shared_prefix_attention(q, [], suffix_k[:, :, [0, 0, 0]], suffix_v[:, :, [0, 0, 0]], lengths)
    with pytest.raises(ValueError, match=r"suffix_lengths \(4,\)"):
        shared_prefix_attention(q, [], suffix_k, suffix_v, lengths[:2])
    with pytest.raises(ValueError, match="suffix_lengths must be integers, got torch.float32"):
        shared_prefix_attention(q, [], suffix_k, suffix_v, lengths.float())
    with pytest.raises(ValueError, match=r"prefixes\[0\]: lengths must be integers, got torch.bool"):
        shared_prefix_attention(q, [(k, v, torch.ones(2, dtype=torch.bool))], suffix_k, suffix_v, lengths)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_lengths_of_any_layout_and_slots_that_were_never_written(backend):
    given = example([(2, 5, [3, 3])], batch=4, suffix=6, lengths=[3, 3, 3, 3])
    want = gathered(oracle)(**given)
    given = {name: t.float().to(HERE) if t.is_floating_point() else t.to(HERE) for name, t in given.items()}
    for name in ("lengths0", "suffix_lengths"):
        given[name] = given[name][:1].expand(len(given[name]))
    for name in ("k0", "v0", "suffix_k", "suffix_v"):
        given[name][:, 3:] = torch.nan
    got = gathered(shared_prefix_attention)(**given, backend=backend)
    assert relative_error(got.cpu(), want) < 1e-5
    if backend == "torch":
        q = given["q"].clone().requires_grad_()
        (dq,) = torch.autograd.grad(gathered(shared_prefix_attention)(**(given | {"q": q})).sum(), q)
        assert dq.isfinite().all() and dq.any()
    given["suffix_lengths"] = torch.tensor([3, 9, 1, 9, 0, 9, 2, 9], device=HERE)[::2]
    clean = gathered(shared_prefix_attention)(**(given | {"suffix_lengths": given["suffix_lengths"].contiguous()}))
    assert torch.equal(gathered(shared_prefix_attention)(**given, backend=backend).isfinite(), clean.isfinite())
    assert relative_error(gathered(shared_prefix_attention)(**given, backend=backend), clean) < 1e-5


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_sequences_or_queries(backend):
    k = torch.randn(1, 5, 2, 16, device=HERE)
    for batch, n in ((0, 1), (3, 0)):
        suffix = torch.randn(batch, 6, 2, 16, device=HERE)
        lengths = torch.zeros(batch, dtype=torch.int64, device=HERE)
        q = torch.randn(batch, n, 4, 16, device=HERE)
        assert shared_prefix_attention(q, [(k, k)], suffix, suffix, lengths, backend=backend).shape == q.shape
        with pytest.raises(ValueError, match="unknown backend 'cuda'"):
            shared_prefix_attention(q, [(k, k)], suffix, suffix, lengths, backend="cuda")
