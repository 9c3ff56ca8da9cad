"""Sparse routing: each token through its top k of E experts, and no other expert computed.

Sizes must not depend on the data (a forward is captured in a CUDA graph), so the tokens are sorted by expert and every
expert gets whole blocks of slots: N k tokens need at most N k / block + E blocks, a number known beforehand. A block
multiplies with one expert's matrix; slots left over hold zeros. Tokens enter slots and leave them by a permutation, so
the gradient of either is the other: no sum, no atomic addition, the same bits each time.
"""

from typing import Any

import torch
from torch import nn

from layers.base import positive
from mad.determinism import algorithms


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
        scores, experts = highest(self.scores(x), self.top_k)
        return scores.softmax(-1), experts

    def of_all(self, x: torch.Tensor) -> torch.Tensor:
        """Weights of all experts (N, E), as the published MAD code has them: scores below the k highest count as zeros,
        so that every expert keeps some weight, one with a negative score among the chosen less than those."""
        scores = self.scores(x)
        least = highest(scores.detach(), self.top_k)[0][:, -1:]
        return torch.where(scores < least, 0, scores).softmax(-1)

    def idle(self, *experts: nn.Parameter) -> int:
        """Of the trained parameters of all experts, those that a token does not use."""
        params = sum(p.numel() for p in experts if p.requires_grad)
        return params // self.num_experts * (self.num_experts - self.top_k)


def highest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As scores.topk(k), scores (N, E), ties to the first; for few columns k passes are faster than a sort, and their
    gradient adds nothing up."""
    ids = torch.arange(scores.shape[-1], device=scores.device)
    left, values, places = scores.detach().clamp(min=torch.finfo(scores.dtype).min), [], []
    for _ in range(k):
        place = left.argmax(-1, keepdim=True)  # (N, 1)
        chosen = place == ids
        values.append(torch.where(chosen, scores, 0).sum(-1, keepdim=True))
        places.append(place)
        left = left.masked_fill(chosen, -torch.inf)
    return torch.cat(values, -1), torch.cat(places, -1)


def ranks(one_hot: torch.Tensor) -> torch.Tensor:
    """How many rows above have a one in the same column, one_hot (N, E) bool -> (N,) for each row's own column.

    In blocks of rows: a sum along all of them would leave most of a GPU idle.
    """
    rows = one_hot.shape[0]
    blocks = nn.functional.pad(one_hot.long(), (0, 0, 0, -rows % 256)).unflatten(0, (-1, 256))
    inside = blocks.cumsum(1)
    before = inside[:, -1].cumsum(0) - inside[:, -1]  # (blocks, E)
    upto = (inside + before.unsqueeze(1)).flatten(0, 1)[:rows]
    return torch.where(one_hot, upto, 0).sum(-1) - 1


@torch.library.custom_op("mad::inverse", mutates_args=())
def inverse(slot: torch.Tensor, size: int) -> torch.Tensor:
    """source (size,) with source[slot[i]] = i, and len(slot) where no slot[i] is."""
    source = slot.new_full((size,), len(slot))
    with algorithms(False):  # each place is written once: there is no order to depend on
        return source.scatter_(0, slot, torch.arange(len(slot), device=slot.device))


@inverse.register_fake
def _(slot, size):
    return slot.new_empty(size)


class Move(torch.autograd.Function):
    """rows of x (N, D) at `take`, zeros where that is N; `back` is the inverse of `take`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, take: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        return rows_or_zeros(x, take)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        _, back = ctx.saved_tensors
        return rows_or_zeros(gradients[0], back), None, None


def rows_or_zeros(x: torch.Tensor, take: torch.Tensor) -> torch.Tensor:
    if not len(x):
        return x.new_zeros(len(take), x.shape[1])
    inside = take < len(x)
    return torch.where(inside.unsqueeze(-1), x[take.clamp(max=len(x) - 1)], 0)


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
        self.slot = first_slot[assignments] + ranks(one_hot)  # (N k,), each once
        self.source = inverse(self.slot, blocks * self.block)  # an empty slot reads a zero
        owner = torch.searchsorted(last_block, torch.arange(blocks, device=experts.device), right=True)
        self.owner = owner.unsqueeze(-1) == torch.arange(num_experts, device=experts.device)  # (blocks, E) one-hot

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (N, D) into the slots, (blocks, block, D)."""
        copies = x.unsqueeze(1).expand(-1, self.top_k, -1).flatten(0, 1)  # (N k, D)
        slots = Move.apply(copies, self.source, self.slot)
        return slots.unflatten(0, (len(self.owner), self.block))

    def multiply(self, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each block with its expert's matrix: (blocks, block, I), (E, I, O) -> (blocks, block, O)."""
        weights = weights.to(slots.dtype)
        own = (self.owner.to(slots.dtype) @ weights.flatten(1)).unflatten(1, weights.shape[1:])
        return torch.bmm(slots, own)

    def scatter(self, slots: torch.Tensor) -> torch.Tensor:
        """Back to the tokens: (blocks, block, O) -> (N, k, O)."""
        return Move.apply(slots.flatten(0, 1), self.slot, self.source).unflatten(0, (-1, self.top_k))
