"""What a run leaves behind: one Record."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mad.registry import unknown

SCHEMA = 1  # of a record and of a store; another number is another layout
STATUSES = ("ok", "diverged", "failed")
FAILURES = ("exception", "killed", "memory", "timeout")  # how a failed run failed
RUN_ID = "[0-9a-f]" * 16  # what one looks like, as a regular expression and as a glob
DONE = ("ok", "diverged")  # not run again: a divergence is a result; a failure may be the machine's


@dataclass
class Record:
    """One run's outcome. Written for every run that was started, whatever became of it."""

    run_id: str
    status: str  # ok | diverged | failed
    config: dict[str, Any]  # Run.to_dict() of the resolved run
    metrics: dict[str, float] = field(default_factory=dict)
    # of the evaluation that train.report names: accuracy, macro_accuracy, loss (test, nats), of text also perplexity
    # and bits_per_byte; by batch, then averaged, batch_macro_accuracy and batch_perplexity; of the same model
    # valid_accuracy, ...; reported_step, when it was; train_loss, best_accuracy (over all evaluations)
    curve: list[dict[str, float]] = field(default_factory=list)
    # at most 50 points: step, train_loss, and what of the above is measured on the test set
    cost: dict[str, int] = field(default_factory=dict)
    # of the model, for one sequence of seq_len tokens: params, params_nonembedding, params_active, flops (forward),
    # state_size; of the run: tokens, unique_tokens (distinct ones among them), flops_exact (3 x forward FLOPs x
    # sequences), flops_6nd (6 x params_nonembedding x tokens)
    steps: int = 0  # taken
    seconds: float = 0.0
    setup_seconds: float = 0.0  # of these for compilation and capture, on a GPU
    error: str | None = None  # the traceback of a failed run
    failure: str | None = None  # of FAILURES
    attempts: int = 1  # how often it was begun
    sweep: str | None = None
    started: str | None = None  # UTC, ISO 8601
    device: str | None = None  # "cpu" or the GPU's name
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)  # mad, torch, python; plugins: the text of each
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> "Record":
        """The record `to_dict` gave.

        Raises:
            ValueError: a field is missing, unknown or of another type, or the status is none of STATUSES.
        """
        if not isinstance(given, dict):
            raise ValueError(f"a record is a JSON object, got {type(given).__name__}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in given:
            if key not in fields:
                raise unknown("record field", key, fields)
        for key in ("run_id", "status", "config"):
            if key not in given:
                raise ValueError(f"a record needs the field {key!r}; it has: {', '.join(given) or 'none'}")
        for key, kind in (("config", dict), ("metrics", dict), ("curve", list), ("cost", dict), ("versions", dict)):
            if not isinstance(given.get(key, kind()), kind):
                raise ValueError(f"record field {key!r} must be a {kind.__name__}, got {given[key]!r}")
        for key in ("error", "failure"):
            if not isinstance(given.get(key), (str, type(None))):
                raise ValueError(f"record field {key!r} must be a text or null, got {given[key]!r}")
        parts = [(f"config {key}", given["config"].get(key, {})) for key in ("task", "arch", "optim", "train")]
        for name, part in parts + [("curve point", point) for point in given.get("curve", ())]:
            if not isinstance(part, dict):  # a table could not be made of it, at the end of a sweep
                raise ValueError(f"a record's {name} must be a dict, got {part!r}")
        if given["status"] not in STATUSES:
            raise unknown("status", given["status"], STATUSES)
        return cls(**given)

    @property
    def last_error(self) -> str | None:
        """What went wrong, without where: the line after the traceback's last frame."""
        lines = (self.error or "").strip().splitlines()
        frames = [i for i, line in enumerate(lines) if line.startswith('  File "')]
        after = lines[frames[-1] + 1 :] if frames else lines
        plain = [line for line in after if line.strip() and not line.startswith((" ", "Extension modules", "Thread"))]
        return (plain[0] if plain and frames else lines[-1]).strip() if lines else None
