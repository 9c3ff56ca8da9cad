"""Which run is which published model: by its stack alone, whatever it is called. Other options are another model."""

import json
from dataclasses import dataclass
from typing import Any

HYENA = {
    "name": "hyena", "expansion": 1, "proj_groups": 1, "filter_order": 64,
    "filter": {"name": "implicit", "sine_frequency": 1.0},
}  # fmt: skip
CONV, IDENTITY = {"name": "base_conv"}, {"name": "identity"}
BARE = {"name": "base_conv", "residual": False}
LONG_CONV = BARE | {"filter": {"name": "implicit", "filter_order": 16, "sine_frequency": 1.0}}


@dataclass(frozen=True)
class Knob:
    """The option of a stack's last layer, and of those of its name, that a figure varies, and how the figure counts."""

    option: str
    default: int
    letter: str
    less: int = 0  # ours minus theirs
    by_width: bool = False  # the figure has only the product with the width, which several models may share

    def text(self, value: int, dim: int) -> str:
        return f"{self.letter}={value * dim if self.by_width else value - self.less}"


Model = tuple[list[dict[str, Any]], Knob | None]

BASED: dict[str, Model] = {
    "attention": ([CONV, {"name": "attention", "rope": False}], None),
    "sliding_window": (
        [CONV, {"name": "sliding_attention", "rope": False}],
        Knob("window", 33, "w", less=1),  # a published window leaves out the query's own token
    ),
    "based": ([CONV, {"name": "based"}], Knob("feature_dim", 16, "f")),
    # published by their sizes, 16 bytes times width times states: of the code's widths and states, those that fit
    "mamba": ([{"name": "mamba"}] * 2, Knob("num_states", 4, "dN", by_width=True)),
    "mamba2": ([{"name": "mamba2"}] * 2, Knob("num_states", 128, "dN", by_width=True)),
    "deltanet": ([CONV, {"name": "delta_net"}], None),
    "gated_deltanet": ([CONV, {"name": "gated_delta_net"}], None),
    "gla": ([CONV, {"name": "gla", "num_heads": 2, "expand_k": 0.5}], None),
    "rwkv7": ([CONV, {"name": "rwkv7"}], None),
    "hyena": ([HYENA, IDENTITY] * 2, None),
}
ZOOLOGY: dict[str, Model] = {
    "attention": ([{"name": "attention", "rope": False}, IDENTITY] * 2, None),
    "hyena": ([HYENA, IDENTITY] * 4, None),
    "rwkv4": ([{"name": "rwkv4"}, IDENTITY] * 4, None),
    "h3": ([{"name": "h3", "num_states": None, "head_dim": 2}, IDENTITY] * 4, None),
    "base_conv": ([BARE, IDENTITY, LONG_CONV, IDENTITY] * 2, None),
}


def model_of(stack: Any, models: dict[str, Model], dim: int) -> tuple[str, str] | None:
    """(model, knob) of a table's `stack`, for instance ("based", "f=16"); None: no published model."""
    specs = _specs(stack)
    for name, (layers, knob) in models.items():
        if knob is None:
            if specs == layers:
                return name, ""
            continue
        mine = [dict(spec) for spec in specs]
        varied = [spec for spec in mine if spec.get("name") == layers[-1]["name"]]
        values = {spec.pop(knob.option, knob.default) for spec in varied}
        if mine == layers and len(values) == 1 and values != {None}:
            return name, knob.text(values.pop(), dim)
    return None


def plain(layers: list[str]) -> Model:
    """A model of layers with the options that they have by default, which are the MAD protocol's."""
    return [{"name": name} for name in layers], None


def by_width(name: str) -> bool:
    """Whether the knob of BASED's model `name` holds the width, too."""
    knob = BASED[name][1] if name in BASED else None
    return knob is not None and knob.by_width


def _specs(stack: Any) -> list[dict[str, Any]]:
    """'a-b' or a JSON list of specs, as tables have them -> a mapping for each layer."""
    text = str(stack)
    try:
        given = json.loads(text) if text.startswith("[") else text.split("-")
    except ValueError as error:
        raise ValueError(f"the stack {text!r} is no list of layers in JSON: {error}") from None
    return [spec if isinstance(spec, dict) else {"name": spec} for spec in given]
