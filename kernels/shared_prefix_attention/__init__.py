"""Attention of many sequences over prefixes they share and suffixes of their own: Hydragen."""

from collections.abc import Sequence

import torch

from kernels.checks import of_integers, use_triton
from kernels.shared_prefix_attention import reference


def shared_prefix_attention(
    q: torch.Tensor,
    prefixes: Sequence[tuple[torch.Tensor, ...]],
    suffix_k: torch.Tensor,
    suffix_v: torch.Tensor,
    suffix_lengths: torch.Tensor,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Softmax attention of each query over all of its prefixes and its own suffix, scale 1 / sqrt(d), no causal mask.

    Juravsky et al. 2024 (Hydragen, arXiv 2402.05099): the queries of all sequences that share a prefix meet its keys in
    one matrix product, instead of one product a sequence with its own copy; partial results join exactly by their
    log-sum-exps. Several levels make a tree: a system prompt, a document, a branch.

    Args:
        q: (B, n, Hq, d), n query tokens of each sequence.
        prefixes: levels (k, v), each (S, P, Hkv, d): consecutive runs of B / S sequences share one of the S prefixes.
            A level (k, v, lengths) with lengths (S,), integers, has prefixes of different lengths, up to P.
        suffix_k, suffix_v: (B, U, Hkv, d). Query head h reads key head h // (Hq / Hkv).
        suffix_lengths: (B,), integers of at most U: how much of the suffix there is.
        backend: "auto" | "torch" | "triton". Triton has no gradients: "auto" takes torch where they are wanted.

    Returns:
        (B, n, Hq, d), of q's type, partial results in fp32; zero where a sequence has no keys at all.

    Raises:
        ValueError: shapes that do not fit together, a number of prefixes that does not divide B, an unknown backend.
    """
    check(q, prefixes, suffix_k, suffix_v, suffix_lengths)
    tensors = [q, suffix_k, suffix_v, *(t for level in prefixes for t in level[:2])]
    widest = 128 if q.dtype == torch.float32 else 256
    lengths = [suffix_lengths, *(level[2] for level in prefixes if len(level) == 3)]
    runs = use_triton(backend, *tensors, *lengths, width=q.shape[-1], widest=widest, gradients=False)
    if not q.numel():
        return q + sum(t[:0].sum() for t in tensors)  # so that all have a gradient
    levels = [level if len(level) == 3 else (*level, None) for level in prefixes]
    if runs:
        from kernels.shared_prefix_attention import triton

        return triton.shared_prefix_attention(q, levels, suffix_k, suffix_v, suffix_lengths)
    return reference.shared_prefix_attention(q, levels, suffix_k, suffix_v, suffix_lengths)


def check(q, prefixes, suffix_k, suffix_v, suffix_lengths) -> None:
    """Raise ValueError unless everything fits together."""
    if q.dim() != 4 or suffix_k.dim() != 4 or suffix_k.shape != suffix_v.shape:
        raise ValueError(
            f"expected q (B, n, Hq, d) and suffix_k, suffix_v (B, U, Hkv, d), got {tuple(q.shape)}, "
            f"{tuple(suffix_k.shape)} and {tuple(suffix_v.shape)}"
        )
    batch, _, query_heads, d = q.shape
    key_heads = suffix_k.shape[2]
    if suffix_k.shape[0] != batch or suffix_k.shape[3] != d or suffix_lengths.shape != (batch,):
        raise ValueError(
            f"expected suffixes ({batch}, U, Hkv, {d}) and suffix_lengths ({batch},) for q {tuple(q.shape)}, got "
            f"{tuple(suffix_k.shape)} and {tuple(suffix_lengths.shape)}"
        )
    if not of_integers(suffix_lengths):
        raise ValueError(f"suffix_lengths must be integers, got {suffix_lengths.dtype}")
    if not key_heads or query_heads % key_heads:
        raise ValueError(f"the {query_heads} query heads must be a multiple of the {key_heads} key heads")
    for i, level in enumerate(prefixes):
        if len(level) not in (2, 3):
            raise ValueError(f"prefixes[{i}]: expected (k, v) or (k, v, lengths), got {len(level)} tensors")
        k, v = level[:2]
        if k.dim() != 4 or k.shape != v.shape or k.shape[2:] != (key_heads, d):
            raise ValueError(
                f"prefixes[{i}]: expected k, v (S, P, {key_heads}, {d}), got {tuple(k.shape)} and {tuple(v.shape)}"
            )
        if k.shape[0] < 1 or batch % k.shape[0]:
            raise ValueError(f"prefixes[{i}]: {k.shape[0]} prefixes do not divide the {batch} sequences")
        if len(level) == 3 and level[2].shape != k.shape[:1]:
            raise ValueError(f"prefixes[{i}]: expected lengths ({k.shape[0]},), got {tuple(level[2].shape)}")
        if len(level) == 3 and not of_integers(level[2]):
            raise ValueError(f"prefixes[{i}]: lengths must be integers, got {level[2].dtype}")
