"""Which run is which published model: by its stack alone, whatever it is called. Other options are another model."""

import json
from dataclasses import dataclass
from typing import Any

HYENA = {
    "name": "hyena", "expansion": 1, "proj_groups": 1, "filter_order": 64,
    "filter": {"name": "implicit", "sine_frequency": 1.0},
}  # fmt: skip
LONG_CONV = {"name": "base_conv", "filter": {"name": "implicit", "filter_order": 16, "sine_frequency": 1.0}}
CONV, IDENTITY = {"name": "base_conv"}, {"name": "identity"}


@dataclass(frozen=True)
class Knob:
    """The option of a stack's last layer that a figure varies, and how the figure counts it."""

    option: str
    default: int
    letter: str
    less: int = 0  # ours minus theirs

    def text(self, value: int) -> str:
        return f"{self.letter}={value - self.less}"


Model = tuple[list[dict[str, Any]], Knob | None]

BASED: dict[str, Model] = {
    "attention": ([CONV, {"name": "attention", "rope": False}], None),
    "sliding_window": (
        [CONV, {"name": "sliding_attention", "rope": False}],
        Knob("window", 33, "w", less=1),  # a published window leaves out the query's own token
    ),
    "based": ([CONV, {"name": "based"}], Knob("feature_dim", 16, "f")),
    # which widths and how many states its published sizes are is not known: ours stands beside them
    "mamba": ([{"name": "mamba", "num_states": 16}] * 2, None),
    "deltanet": ([CONV, {"name": "delta_net"}], None),
    "gated_deltanet": ([CONV, {"name": "gated_delta_net"}], None),
    "gla": ([CONV, {"name": "gla", "num_heads": 2, "expand_k": 0.5}], None),
    "hyena": ([HYENA, IDENTITY] * 2, None),
}
ZOOLOGY: dict[str, Model] = {
    "attention": ([{"name": "attention", "rope": False}, IDENTITY] * 2, None),
    "hyena": ([HYENA, IDENTITY] * 4, None),
    "base_conv": ([CONV, IDENTITY, LONG_CONV, IDENTITY] * 2, None),
}


def model_of(stack: Any, models: dict[str, Model]) -> tuple[str, str] | None:
    """(model, knob) of a table's `stack`, for instance ("based", "f=16"); None: no published model."""
    specs = _specs(stack)
    for name, (layers, knob) in models.items():
        value = None
        mine = [*specs[:-1], dict(specs[-1])]
        if knob is not None:
            value = mine[-1].pop(knob.option, knob.default)
        if mine == layers:
            return name, "" if knob is None or value is None else knob.text(value)
    return None


def _specs(stack: Any) -> list[dict[str, Any]]:
    """'a-b' or a JSON list of specs, as tables have them -> a mapping for each layer."""
    text = str(stack)
    given = json.loads(text) if text.startswith("[") else text.split("-")
    return [spec if isinstance(spec, dict) else {"name": spec} for spec in given]
