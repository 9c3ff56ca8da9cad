"""Sparse routing: each token through its top k of E experts, and no other expert computed.

Sizes must not depend on the data (a forward is captured in a CUDA graph), so the tokens are sorted by expert and every
expert gets whole blocks of slots: N k tokens need at most N k / block + E blocks, a number known beforehand. A block
multiplies with one expert's matrix; slots left over hold zeros. Every gather uses an index once, hence gradients need
no atomic additions and are the same each time.
"""

import torch
from torch import nn

from layers.base import positive


class Router(nn.Module):
    """Scores of the experts, x (N, dim) -> weights (N, k) that sum to one, and experts (N, k).

    The softmax runs over the k chosen scores only: no weight leaks to the others (Shazeer et al. 2017, arXiv
    1701.06538).
    """

    def __init__(self, dim: int, num_experts: int, top_k: int, bias: bool = False):
        super().__init__()
        positive(num_experts=num_experts, top_k=top_k)
        if top_k > num_experts:
            raise ValueError(f"top_k={top_k} is more than num_experts={num_experts}; the most is {num_experts}")
        self.num_experts, self.top_k = num_experts, top_k
        self.scores = nn.Linear(dim, num_experts, bias=bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, experts = self.scores(x).topk(self.top_k, dim=-1)
        return scores.softmax(-1), experts

    def idle(self, params: int) -> int:
        """Of the parameters of all experts, those that a token does not use."""
        return params // self.num_experts * (self.num_experts - self.top_k)


class Dispatch:
    """Where the N k assignments of tokens to experts stand in the blocks of slots."""

    def __init__(self, experts: torch.Tensor, num_experts: int):
        assignments = experts.flatten()  # (N k,)
        total = assignments.numel()
        self.top_k = experts.shape[1]
        self.block = 64 if total >= 256 * num_experts else 8  # large blocks for the matrix units, small ones for few
        blocks = -(-total // self.block) + num_experts
        one_hot = assignments.unsqueeze(-1) == torch.arange(num_experts, device=experts.device)
        count = one_hot.sum(0)
        last_block = ((count + self.block - 1) // self.block).cumsum(0)  # blocks up to each expert, inclusive
        first_slot = torch.cat([last_block.new_zeros(1), last_block[:-1]]) * self.block
        rank = (one_hot.cumsum(0) - 1).gather(1, assignments.unsqueeze(-1)).squeeze(-1)  # among its expert's
        self.slot = first_slot[assignments] + rank  # (N k,), each once
        self.source = torch.full((blocks * self.block,), total, device=experts.device)  # an empty slot reads a zero
        self.source.scatter_(0, self.slot, torch.arange(total, device=experts.device))
        owner = torch.searchsorted(last_block, torch.arange(blocks, device=experts.device), right=True)
        self.owner = owner.unsqueeze(-1) == torch.arange(num_experts, device=experts.device)  # (blocks, E) one-hot

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (N, D) into the slots, (blocks, block, D)."""
        copies = x.unsqueeze(1).expand(-1, self.top_k, -1).flatten(0, 1)  # (N k, D)
        slots = nn.functional.pad(copies, (0, 0, 0, 1))[self.source]
        return slots.unflatten(0, (-1, self.block))

    def multiply(self, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each block with its expert's matrix: (blocks, block, I), (E, I, O) -> (blocks, block, O)."""
        weights = weights.to(slots.dtype)
        own = (self.owner.to(slots.dtype) @ weights.flatten(1)).unflatten(1, weights.shape[1:])
        return torch.bmm(slots, own)

    def scatter(self, slots: torch.Tensor) -> torch.Tensor:
        """Back to the tokens: (blocks, block, O) -> (N, k, O)."""
        return slots.flatten(0, 1)[self.slot].unflatten(0, (-1, self.top_k))
