"""Ladders: one architecture at many sizes, and the learning rate that goes with each.

    python -m mad.sweep task=text ladder=transformer,hyena 'rung=range(0,4)' train.budget_flops=1e11

A ladder (conf/ladder/*.yaml) names a block of layers and its rungs. A rung says how wide the model is (`dim`), how
often the block is repeated (`depth`), and options such as `num_heads`, which go to all layers of the block that have
them. It is resolved before there is a run: records hold plain `arch.*` values, `arch.name` is the ladder's. Rates
shrink with the width, as those of hidden matrices under muP (Yang et al. 2022, arXiv 2203.03466): `optim.lr` and
`optim.min_lr` are those at `base_dim`, a run's are base_dim / dim times them.
"""

from typing import Any

import layers
from mad.models import expand
from mad.registry import is_number, unknown

KEYS = ("name", "block", "base_dim", "rungs")
SIZES = ("dim", "depth")  # of a rung; all else are options of layers


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a point with `ladder` and `rung` put into arch and optim; without a ladder, as they are.

    Raises:
        ValueError: a rung without a ladder, a ladder without a rung or without that one, or a ladder that is not whole.
    """
    ladder, rung = values.get("ladder"), values.get("rung")
    if not ladder:
        if rung is not None:
            raise ValueError(f"rung={rung} needs a ladder, for instance ladder=transformer")
        return values
    for key in ladder:
        if key not in KEYS:
            raise unknown("key", f"ladder.{key}", (f"ladder.{known}" for known in KEYS))
    missing = [key for key in KEYS if not ladder.get(key)]
    if missing:
        raise ValueError(f"a ladder needs {', '.join(KEYS)}; ladder {ladder.get('name')!r} lacks {', '.join(missing)}")
    base = ladder["base_dim"]
    if not is_number(base) or not base > 0:
        raise ValueError(f"ladder {ladder['name']!r}: base_dim must be a number above 0, got {base!r}")
    size = _size(ladder, rung)
    options = {key: value for key, value in size.items() if key not in SIZES}
    block = [_with_options(spec, options) for spec in expand(ladder["block"])]
    for option in options:
        if not any(option in _options(spec) for spec in expand(ladder["block"])):
            raise ValueError(
                f"rung {rung} of ladder {ladder['name']!r}: no layer of its block has the option {option!r}"
            )
    factor = base / size["dim"]
    optim = values["optim"]
    rates = {key: float(optim[key]) * factor for key in ("lr", "min_lr")}
    arch = {"name": ladder["name"], "stack": block * size["depth"], "dim": size["dim"]}
    return values | {"arch": values["arch"] | arch, "optim": optim | rates}


def _size(ladder: dict[str, Any], rung: Any) -> dict[str, Any]:
    name, rungs = ladder["name"], ladder["rungs"]
    if not isinstance(rungs, list) or not all(isinstance(size, dict) for size in rungs):
        raise ValueError(
            f"ladder {name!r}: rungs must be a list of mappings, as [{{dim: 64, depth: 2}}], got {rungs!r}"
        )
    there = f"ladder {name!r} has rung=0 to {len(rungs) - 1}"
    if rung is None:
        raise ValueError(f"{there}; choose one or several, for instance 'rung=range(0,{len(rungs)})'")
    if not 0 <= rung < len(rungs):
        raise ValueError(f"{there}, got rung={rung}; the nearest is {min(max(rung, 0), len(rungs) - 1)}")
    for key in SIZES:
        value = rungs[rung].get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"rung {rung} of ladder {name!r}: {key} must be a whole number of at least 1, got {value!r}"
            )
    return rungs[rung]


def _with_options(spec: Any, options: dict[str, Any]) -> Any:
    """A layer with those of the options that it has and that its spec leaves open."""
    if isinstance(spec, dict) and "parallel" in spec:
        return {"parallel": [_with_options(branch, options) for branch in spec["parallel"]]}
    own = {"name": spec} if isinstance(spec, str) else spec
    chosen = {key: value for key, value in options.items() if key in _options(spec)}
    return {"name": own["name"], **chosen, **own} if chosen else spec


def _options(spec: Any) -> set[str]:
    if isinstance(spec, dict) and "parallel" in spec:
        return set().union(*(_options(branch) for branch in spec["parallel"]))
    return set(layers.registry.options(spec if isinstance(spec, str) else spec["name"]))
