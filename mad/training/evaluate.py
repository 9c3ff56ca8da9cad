"""Loss, accuracy and macro accuracy over a set of examples, with one transfer to the host."""

from typing import Any

import torch
import torch.nn.functional as F

from mad.training.data import IGNORE, Examples


def loss_of(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats over the scored positions; logits (B, K, V), targets (B, K)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction=reduction)


@torch.no_grad()
def evaluate(model: Any, parts: list[Examples], batch_size: int, vocab_size: int) -> dict[str, float]:
    """loss (nats), accuracy (share of the scored positions), macro_accuracy (mean over the ids of the vocabulary).

    Parts of a mixture count by their sequences. An id that is neither a target nor predicted is left out of the macro
    average; one that is predicted but never a target counts as 0 (as torchmetrics does). With several parts,
    accuracy_0, accuracy_1, ... are those of the parts.
    """
    model.eval()
    counts = torch.stack([_counts(model, part, batch_size, vocab_size) for part in parts]).cpu()  # (P, 3, V + 1)
    model.train()
    sequences = torch.tensor([len(part) for part in parts], dtype=torch.float64)
    weights = sequences / sequences.sum()
    right, targets, predicted = counts[:, :, :-1].unbind(1)  # (P, V) each
    loss = counts[:, 0, -1] / targets.sum(-1)
    accuracy = right.sum(-1) / targets.sum(-1)
    seen = (targets + predicted).sum(0) > 0
    recall = right.sum(0) / targets.sum(0).clamp(min=1)
    scores = {
        "loss": (weights * loss).sum().item(),
        "accuracy": (weights * accuracy).sum().item(),
        "macro_accuracy": recall[seen].mean().item(),
    }
    if len(parts) > 1:
        scores |= {f"accuracy_{i}": value for i, value in enumerate(accuracy.tolist())}
    return scores


def _counts(model: Any, part: Examples, batch_size: int, vocab_size: int) -> torch.Tensor:
    """(3, V + 1): by id, how often right, how often target, how often predicted; the summed loss in [0, V]."""
    device = part.inputs.device
    counts = torch.zeros(3, vocab_size + 1, dtype=torch.float64, device=device)
    for start in range(0, len(part), batch_size):
        batch = part.take(slice(start, start + batch_size))
        logits = model(batch.inputs, batch.positions)
        counts[0, -1] += loss_of(logits, batch.targets, reduction="sum")
        guess = logits.argmax(-1).flatten()
        target = batch.targets.flatten()
        scored = (target != IGNORE).double()
        target = target.clamp(min=0)
        counts[0].index_add_(0, target, scored * (guess == target))
        counts[1].index_add_(0, target, scored)
        counts[2].index_add_(0, guess, scored)
    return counts
