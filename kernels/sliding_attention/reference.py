"""Sliding attention in plain torch: queries in blocks, each with its own block of keys and the one before it."""

import torch
import torch.nn.functional as F

from kernels.checks import as_given, wide


def sliding_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """See kernels.sliding_attention."""
    length = q.shape[2]
    if window >= length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    block = max(window - 1, 16)  # so that no query sees past the block before its own
    blocks = -(-length // block)
    q, k, v = (F.pad(t, (0, 0, 0, blocks * block - length)).unflatten(2, (blocks, block)) for t in (q, k, v))
    k, v = (torch.cat([F.pad(t, (0, 0, 0, 0, 1, 0))[:, :, :-1], t], dim=3) for t in (k, v))  # (B, H, n, 2c, d)
    query = torch.arange(block, device=q.device).unsqueeze(1) + block
    key = torch.arange(2 * block, device=q.device)
    seen = (key <= query) & (key > query - window)  # (c, 2c)
    first = torch.arange(blocks, device=q.device).view(-1, 1, 1) == 0
    seen = seen & ~(first & (key < block))  # (n, c, 2c): nothing stands before the first block
    y = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=seen)
    return y.unflatten(0, (-1, v.shape[1])).flatten(2, 3)[:, :, :length]


def sliding_step(q, k, v, cache, position):
    """See kernels.sliding_step."""
    window, dtype = cache[0].shape[2], v.dtype
    slot = torch.arange(window, device=q.device)
    newest = (slot == (position % window).unsqueeze(1)).view(-1, 1, window, 1)  # (B, 1, W, 1)
    keys = torch.where(newest, k.unsqueeze(2).to(cache[0].dtype), cache[0])
    values = torch.where(newest, v.unsqueeze(2).to(cache[1].dtype), cache[1])
    reached = (slot <= position.unsqueeze(1)).view(-1, 1, window, 1)
    # what was never written may be anything, NaN too
    shown = (torch.where(reached, t, 0.0).to(wide(v).dtype) for t in (keys, values))
    with as_given(v):
        y = F.scaled_dot_product_attention(q.unsqueeze(2).to(wide(v).dtype), *shown, attn_mask=reached.transpose(2, 3))
    return y.squeeze(2).to(dtype), (keys, values)
