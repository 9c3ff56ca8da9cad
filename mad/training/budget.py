"""How long a run trains, and what that came to: steps from tokens or FLOPs, tokens and FLOPs from steps.

A training step costs three times its forward pass: the backward pass computes two products for each one of it.
"""

from typing import Any

from mad.config import Train
from mad.models import Cost
from mad.training.data import Batches

TOLERANCE = 0.05  # share of a budget that whole steps may miss it by


def steps(train: Train, task: Any, cost: Cost) -> int | None:
    """The steps of a run; None: those of its epochs. `cost` is that of a sequence of the training data.

    Raises:
        ValueError: more than one of steps, tokens and budget_flops; sequences of several lengths, which neither tokens
            nor FLOPs can share out; a budget that no number of whole steps comes to.
    """
    given = {key: getattr(train, key) for key in ("steps", "tokens", "budget_flops") if getattr(train, key) is not None}
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(f'train.{key}={value}' for key, value in given.items())} are given; one is enough"
        )
    if train.steps is not None or not given:
        return train.steps
    lengths = task.lengths("train")
    if len(set(lengths)) > 1:
        raise ValueError(
            f"train.{list(given)[0]} needs sequences of one length, task {task.name!r} mixes "
            f"{', '.join(map(str, lengths))} tokens; expected train.steps or train.epochs"
        )
    if train.tokens is not None:
        return max(1, round(train.tokens / (train.batch_size * cost.seq_len)))
    assert train.budget_flops is not None
    sequence = 3 * cost.flops
    if _misses(train.budget_flops, sequence * train.batch_size):
        raise _too_few_steps(train.budget_flops, sequence, train.batch_size)
    return round(train.budget_flops / (sequence * train.batch_size))


def spent(cost: Cost, model: Any, batches: Batches, lengths: list[int]) -> dict[str, int]:
    """What a run has trained on: tokens, unique_tokens, flops_exact, flops_6nd; Python integers hold any size.

    `lengths` are those of the sequences of each part of the data.
    """
    tokens = unique = flops = 0
    for length, size, trained in zip(lengths, batches.sizes, batches.trained, strict=True):
        tokens += trained * length
        unique += min(trained, size) * length
        flops += 3 * trained * model.flops(length)
    return {
        "tokens": tokens,
        "unique_tokens": unique,
        "flops_exact": flops,
        "flops_6nd": 6 * cost.params_nonembedding * tokens,
    }


def _misses(budget: float, step: int) -> bool:
    return abs(round(budget / step) * step - budget) > TOLERANCE * budget


def _too_few_steps(budget: float, sequence: int, batch_size: int) -> ValueError:
    misses = (size for size in range(1, batch_size) if _misses(budget, sequence * size))
    fitting = next(misses, batch_size) - 1  # and all below: the smallest that is advised for some points fits them all
    whole = round(budget / (sequence * batch_size))
    if fitting == 0:
        advice = f"no batch size would do: one sequence costs {sequence:.3g}"
    else:
        advice = f"train.batch_size={fitting} or smaller would do"
    return ValueError(
        f"train.budget_flops={budget:g} is {budget / (sequence * batch_size):.2f} steps of "
        f"train.batch_size={batch_size}, and {whole} whole ones miss it by more than {TOLERANCE:.0%}; {advice}"
    )
