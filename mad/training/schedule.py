"""Learning-rate schedules: a factor of the peak rate for every step."""

import math

from mad.config import Optim

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The rate of update `step` (from 0) of `steps`: a linear warm-up from 0, then the schedule down to min_lr."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / (optim.warmup_steps + 1)
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    floor = min(optim.min_lr, optim.lr)
    return floor + (optim.lr - floor) * SCHEDULES[optim.schedule](progress)
