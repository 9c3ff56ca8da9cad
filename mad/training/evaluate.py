"""Loss and accuracies over a set of examples, with one transfer to the host."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F

from mad.determinism import algorithms
from mad.training.data import IGNORE, Examples
from mad.training.graphs import Immediate

MOST = 100.0  # nats, whose exponential is still a number that can be summed


def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, of logits (B, K, V) and targets (B, K) -> (B K,), 0 at positions that are not scored."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Their mean over the scored positions; without any 0.

    Summed here: where cross_entropy sums, it does so in a single block of a GPU's threads.
    """
    return losses(logits, targets).sum() / (targets != IGNORE).sum().clamp(min=1)


class Evaluation:
    """Counts, on the device, of what a model gets right; batch by batch, all of one shape.

    A batch leaves its guesses and its losses behind; they are counted once, for all batches together. To count as they
    come takes some thirty launches of a few numbers each.
    """

    def __init__(
        self, model: Any, parts: list[Examples], batch_size: int, vocab_size: int,
        do: Immediate | None = None, precision: Any = None,
    ):  # fmt: skip
        self.model, self.parts = model, parts
        self.do, self.precision = do or Immediate(), precision or contextlib.nullcontext
        device = parts[0].inputs.device
        self.guesses, self.losses = [], []  # of each part (batches, size, K) and (batches, size)
        for part in parts:
            size = min(batch_size, len(part))
            shape = -(-len(part) // size), size
            self.guesses.append(torch.zeros(*shape, part.targets.shape[1], dtype=torch.int64, device=device))
            self.losses.append(torch.zeros(shape, device=device))
        self.counts = torch.zeros(len(parts), 3, vocab_size + 2, dtype=torch.float64, device=device)
        # of each part (3, V + 2): by id, how often right, how often target, how often predicted; in column V sums, of
        # the loss, and of each batch's macro accuracy and perplexity times its sequences; these, in row 0, column V + 1
        self.place = torch.zeros(1, dtype=torch.int64, device=device)  # of the batch

    @torch.no_grad()
    def queue(self) -> None:
        """Fill `counts`."""
        self.model.eval()
        for index, guesses in enumerate(self.guesses):
            self.place.zero_()
            for _ in guesses:
                self.do((self, ("batch", index)), lambda index=index: self._batch(index))
            self.do((self, ("count", index)), lambda index=index: self._count(index))
        self.model.train()

    def _batch(self, index: int) -> None:
        part, size = self.parts[index], self.losses[index].shape[1]
        rows = self.place * size + torch.arange(size, device=self.place.device)
        batch = part.take(rows.clamp(max=len(part) - 1))  # the last batch runs over
        with self.precision():
            logits = self.model(batch.inputs, batch.positions)
        loss = losses(logits, batch.targets).view(1, size, -1).sum(-1)
        with algorithms(False):  # every place is written once
            self.guesses[index].index_copy_(0, self.place, logits.argmax(-1).unsqueeze(0))
            self.losses[index].index_copy_(0, self.place, loss)
        self.place += 1

    def _count(self, index: int) -> None:
        targets, counts = self.parts[index].targets, self.counts[index]
        (batches, size), number, vocab_size = self.losses[index].shape, len(targets), counts.shape[1] - 2
        rows = torch.arange(batches * size, device=counts.device)
        guess, target = self.guesses[index].flatten(0, 1)[:number], targets.clamp(min=0)
        scored = (targets != IGNORE).double()
        first = rows[:number, None] // size * vocab_size  # an id has a place in each batch
        each = counts.new_zeros(3, batches * vocab_size)
        with algorithms(False):  # sums of whole numbers
            each[0].index_add_(0, (first + target).flatten(), (scored * (guess == target)).flatten())
            each[1].index_add_(0, (first + target).flatten(), scored.flatten())
            each[2].index_add_(0, (first + guess).flatten(), scored.flatten())
        each = each.view(3, batches, vocab_size)
        here = (rows < number).view(batches, size)
        loss, total = self.losses[index].masked_fill(~here, 0.0).double().sum(-1), each[1].sum(-1)  # (batches,)
        sequences = torch.where(total > 0, here.sum(-1), 0)  # where nothing is scored there is no score
        perplexity = (loss / total.clamp(min=1)).clamp(max=MOST).exp()
        counts.zero_()
        counts[:, :-2] = each.sum(1)
        counts[:, -2] = torch.stack([loss.sum(), (sequences * macro(*each)).sum(), (sequences * perplexity).sum()])
        counts[0, -1] = sequences.sum()


def macro(right: torch.Tensor, targets: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Mean over the ids (..., V) of the share that is right. An id that is neither a target nor predicted is left out;
    one that is predicted but never a target counts as 0 (as torchmetrics does)."""
    seen = targets + predicted > 0
    return (right / targets.clamp(min=1)).sum(-1) / seen.sum(-1).clamp(min=1)


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
