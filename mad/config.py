"""What a run is: one point (task, arch, optim, train, seed), and the hash that names it.

The dataclasses below are the schema of the command line and of every YAML file, and the `config` of every record.
They hold plain values only. Names and options are checked where they mean something (`training.prepare`).
"""

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from mad import plugins
from mad.registry import unknown


@dataclass
class Arch:
    """The model: a stack of layers between an embedding and a head."""

    stack: Any = field(default_factory=list)  # layer names or specs; see mad.models.stack for the notation
    name: str | None = None  # the row on the leaderboard; None: the stack, written compactly
    dim: int = 128
    max_length: int | None = None  # None: the task's input length, filled up to a multiple of 8
    norm: str = "rms"  # rms | layer
    tied_embeddings: bool = False
    embed_dropout: float = 0.0
    positions: bool = False  # learned absolute position embeddings
    head_bias: bool = False  # of the map to the vocabulary
    init: str = "own"  # of linear maps: own, as each layer has it | normal | gpt2; see mad.models.build
    own_filters: bool = False  # long convolutions' filters are drawn as they have it, whatever init


@dataclass
class Optim:
    """AdamW on all parameters, and its learning-rate schedule."""

    lr: float = 5e-4
    weight_decay: float = 0.0
    schedule: str = "cosine"  # cosine | constant
    min_lr: float = 1e-6  # where the cosine ends
    warmup_steps: int = 0  # linear, from 0
    clip: float | None = None  # largest gradient norm


@dataclass
class Train:
    """How long, on how much, and what is scored."""

    epochs: int = 200
    steps: int | None = None  # in place of epochs; at most one of steps, tokens, budget_flops
    tokens: int | float | None = None  # to train on, a whole number, as 1e9; rounded to whole steps
    budget_flops: float | None = None  # of training: 3 times the forward FLOPs of every sequence
    batch_size: int = 128
    eval_every: int | None = None  # steps; None: once an epoch
    precision: str = "auto"  # fp32 | bf16 | auto: bf16 autocast on CUDA, fp32 on a CPU
    num_train: int | None = None  # sequences; None: what the task's protocol says
    num_test: int | None = None
    stop_at: float | None = 0.999  # stop early at this test score; None (always, for text, tokens and FLOPs): never
    score: str = "accuracy"  # what stops early and is ranked: accuracy | macro_accuracy | batch_macro_accuracy
    report: str = "last"  # the evaluation whose numbers count: last | lowest_perplexity, that of the test set
    deterministic: bool = True  # on CUDA, refuse operations that do not repeat bit for bit


@dataclass
class Run:
    """One point of a sweep. `task` holds the task's name and its options, flat: {"name": "mqar", "num_kv": 4}."""

    task: dict[str, Any] = field(default_factory=dict)
    arch: Arch = field(default_factory=Arch)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    seed: int = 12345
    device: str = "auto"  # auto | cpu | cuda
    mode: str = "auto"  # eager | captured (CUDA graphs) | compiled (and captured) | auto: what pays on the device
    plugins: list[str] = field(default_factory=list)  # Python files that register layers or tasks

    @classmethod
    def of(cls, given: "Run | Mapping[str, Any]") -> "Run":
        """A Run from nested mappings with the keys above; a Run is copied.

        Raises:
            ValueError: it is neither, has a key that does not exist, or a value of another type.
        """
        if isinstance(given, Run):
            return copy.deepcopy(given)
        if not isinstance(given, Mapping):
            raise ValueError(f"a run is a mapping of its keys, as {{'task': 'mqar', 'arch': ...}}, got {given!r}")
        values = dict(given)
        task = values.get("task", {})
        if not isinstance(task, (str, Mapping)):
            raise ValueError(f"task must be a name, or a mapping with its name and options, got {task!r}")
        values["task"] = {"name": task} if isinstance(task, str) else dict(task)
        for key, section in SECTIONS.items():
            if isinstance(values.get(key), Mapping):
                values[key] = _fill(section, values[key], f"{key}.")
            elif key in values and not isinstance(values[key], section):
                example = "stack" if key == "arch" else dataclasses.fields(section)[0].name
                raise ValueError(f"{key} must be a mapping of its keys, as {{{example!r}: ...}}, got {values[key]!r}")
        paths = values.get("plugins", [])
        if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"plugins must be a list of files, got {paths!r}")
        return _fill(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def plugin_texts(self) -> dict[str, bytes]:
        """Path -> text of the plugins, as when they were first asked for: copies of this run, in other processes too,
        are the same run whatever becomes of the files."""
        texts = self.__dict__.setdefault("_plugin_texts", {})
        if texts.keys() != set(self.plugins):
            texts = self.__dict__["_plugin_texts"] = plugins.read(self.plugins)
        return texts

    @property
    def id(self) -> str:
        """16 hex digits: a hash of all that decides the result, and of the text of the plugins.

        Where and how a run executes does not decide it: `device` and `mode` are left out (`precision` is in it).
        """
        decides = self.to_dict()
        del decides["device"], decides["mode"]
        for section, key, before in YOUNGER:
            if decides[section][key] == before:
                del decides[section][key]
        decides["plugins"] = plugins.digests(self.plugin_texts)
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def recorded(run: Run) -> dict[str, Any]:
    """What a recording of a run's step holds fixed, besides the sizes of its data."""
    given, optim, train = run.to_dict(), run.optim, run.train
    return {key: given[key] for key in ("arch", "device", "mode")} | {
        "precision": train.precision,
        "batch_size": train.batch_size,
        "deterministic": train.deterministic,
        "clip": optim.clip,
        "weight_decay": optim.weight_decay,
    }


def by_shape(run: Run) -> tuple[int, str, int, float]:
    """A sort key for runs side by side on a GPU: the longest first, so that none is left at the end to run alone; equal
    shapes next to each other, and of these the one with the most data, whose place the others' fits into."""
    fixed = recorded(run)
    decay = fixed.pop("weight_decay")
    kind = json.dumps([fixed.pop("arch"), run.task, fixed])
    return -(run.arch.max_length or 0), kind, -(run.train.num_train or 0), decay


SECTIONS = {"arch": Arch, "optim": Optim, "train": Train}
# keys that the first run ids do not know, and what they were before there was a choice: other values count
YOUNGER = (
    ("train", "tokens", None),
    ("train", "budget_flops", None),
    ("train", "report", "last"),
    ("arch", "init", "own"),
    ("arch", "own_filters", False),
    ("arch", "head_bias", False),
)


def _fill(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    """`cls(**values)`, with the types of the fields enforced (an int is a float, "1e-3" is one too)."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise unknown("key", f"{prefix}{key}", (prefix + name for name in fields))
    return cls(**{key: _coerce(f"{prefix}{key}", value, fields[key].type) for key, value in values.items()})


def _coerce(key: str, value: Any, kind: Any) -> Any:
    kinds = kind.__args__ if isinstance(kind, UnionType) else (kind,)  # int | None -> (int, NoneType)
    if value is None and type(None) in kinds:
        return None
    if float in kinds:
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            raise ValueError(f"{key} must be a number, got {value!r}") from None
        if math.isnan(number):
            raise ValueError(f"{key} must be a number, got {value!r}")
        if int not in kinds:
            return number
        if not number.is_integer():
            raise ValueError(f"{key} must be a whole number, got {value!r}")
        return value if isinstance(value, int) else int(number)
    plain = [k for k in kinds if k in (int, str, bool)]
    if plain and not any(type(value) is k for k in plain):
        raise ValueError(f"{key} must be {' or '.join(k.__name__ for k in plain)}, got {value!r}")
    return value
