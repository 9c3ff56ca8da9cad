"""Loss and accuracies over a set of examples, with one transfer to the host."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F

from mad.determinism import algorithms
from mad.training.data import IGNORE, Examples
from mad.training.graphs import Immediate

MOST = 100.0  # nats, whose exponential is still a number that can be summed


def loss_of(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats over the scored positions; logits (B, K, V), targets (B, K). Without any the mean is 0.

    Summed here: where cross_entropy sums, it does so in a single block of a GPU's threads.
    """
    each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return each.sum() if reduction == "sum" else each.sum() / (targets != IGNORE).sum().clamp(min=1)


class Evaluation:
    """Counts, on the device, of what a model gets right; batch by batch, all of one shape."""

    def __init__(
        self, model: Any, parts: list[Examples], batch_size: int, vocab_size: int,
        do: Immediate | None = None, precision: Any = None,
    ):  # fmt: skip
        self.model, self.parts = model, parts
        self.sizes = [min(batch_size, len(part)) for part in parts]
        self.do, self.precision = do or Immediate(), precision or contextlib.nullcontext
        device = parts[0].inputs.device
        self.counts = torch.zeros(len(parts), 3, vocab_size + 2, dtype=torch.float64, device=device)
        # of each part (3, V + 2): by id, how often right, how often target, how often predicted; in column V sums, of
        # the loss, and of each batch's macro accuracy and perplexity times its sequences; these, in row 0, column V + 1
        self.place = torch.zeros((), dtype=torch.int64, device=device)  # of the batch

    @torch.no_grad()
    def queue(self) -> None:
        """Fill `counts`."""
        self.model.eval()
        self.counts.zero_()
        for index, part in enumerate(self.parts):
            self.place.zero_()
            for _ in range(-(-len(part) // self.sizes[index])):
                self.do((self, index), lambda index=index: self._batch(index))
        self.model.train()

    def _batch(self, index: int) -> None:
        part, size, counts = self.parts[index], self.sizes[index], self.counts[index]
        rows = self.place * size + torch.arange(size, device=counts.device)
        batch = part.take(rows.clamp(max=len(part) - 1))
        target = batch.targets.masked_fill((rows >= len(part)).unsqueeze(-1), IGNORE)  # the last batch runs over
        with self.precision():
            logits = self.model(batch.inputs, batch.positions)
        loss = loss_of(logits, target, reduction="sum").double()
        guess, target = logits.argmax(-1).flatten(), target.flatten()
        scored = (target != IGNORE).double()
        target = target.clamp(min=0)
        mine = torch.zeros_like(counts[:, :-2])
        with algorithms(False):
            mine[0].index_add_(0, target, scored * (guess == target))
            mine[1].index_add_(0, target, scored)
            mine[2].index_add_(0, guess, scored)
        total = scored.sum()
        sequences = torch.where(total > 0, (rows < len(part)).sum(), 0)  # where nothing is scored there is no score
        counts[:, :-2] += mine
        counts[0, -2] += loss
        counts[1, -2] += sequences * macro(*mine)
        counts[2, -2] += sequences * (loss / total.clamp(min=1)).clamp(max=MOST).exp()
        counts[0, -1] += sequences
        self.place += 1


def macro(right: torch.Tensor, targets: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Mean over the ids (V,) of the share that is right. An id that is neither a target nor predicted is left out; one
    that is predicted but never a target counts as 0 (as torchmetrics does)."""
    seen = targets + predicted > 0
    return (right / targets.clamp(min=1)).sum() / seen.sum().clamp(min=1)


def scores(counts: torch.Tensor, sizes: list[int]) -> dict[str, float]:
    """loss (nats), accuracy (share of the scored positions), macro_accuracy (mean over the ids of the vocabulary), and
    as the MAD code has them batch_macro_accuracy and batch_perplexity: of each batch, then the mean over the batches.

    Parts of a mixture count by their `sizes` in sequences. With several, accuracy_0, accuracy_1, ... are those of the
    parts. `counts` (P, 3, V + 2) are those of an Evaluation.
    """
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    right, targets, predicted = counts[:, :, :-2].unbind(1)  # (P, V) each
    loss = counts[:, 0, -2] / targets.sum(-1)
    _, batch_macro, batch_perplexity = (counts[:, :, -2].sum(0) / counts[:, 0, -1].sum()).tolist()
    accuracy = right.sum(-1) / targets.sum(-1)
    result = {
        "loss": (weights * loss).sum().item(),
        "accuracy": (weights * accuracy).sum().item(),
        "macro_accuracy": macro(right.sum(0), targets.sum(0), predicted.sum(0)).item(),
        "batch_macro_accuracy": batch_macro,
        "batch_perplexity": batch_perplexity,
    }
    if len(sizes) > 1:
        result |= {f"accuracy_{i}": value for i, value in enumerate(accuracy.tolist())}
    return result
