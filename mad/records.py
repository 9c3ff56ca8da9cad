"""What a run leaves behind: one Record. (The store of a sweep's records is below it.)"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1  # of a record and of a store; another number is another layout


@dataclass
class Record:
    """One run's outcome. Written for every run that was started, whatever became of it."""

    run_id: str
    status: str  # ok | diverged | failed
    config: dict[str, Any]  # Run.to_dict() of the resolved run
    metrics: dict[str, float] = field(default_factory=dict)
    # final numbers: accuracy, macro_accuracy, loss (test), valid_accuracy, valid_macro_accuracy, train_loss,
    # best_accuracy (over all evaluations)
    curve: list[dict[str, float]] = field(default_factory=list)
    # at most 50 points: step, train_loss, loss, accuracy, macro_accuracy
    cost: dict[str, int] = field(default_factory=dict)  # params, flops (forward, one sequence), state_size
    steps: int = 0  # taken
    seconds: float = 0.0
    error: str | None = None  # the traceback of a failed run
    sweep: str | None = None
    started: str | None = None  # UTC, ISO 8601
    device: str | None = None  # "cpu" or the GPU's name
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)  # mad, torch, python
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
