"""What a model costs, from the layers' own formulas (torch's counter sees no FFT, scan or CPU attention)."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from mad.models.stack import each


@dataclass(frozen=True)
class Cost:
    """Of one sequence: trained parameters, forward FLOPs (a multiply-add is 2), recurrent state elements.

    `params_nonembedding` leaves out what is looked up (token vectors, learned positions), not the output weights: a
    tied table is those. It is the N of 6 N D. `params_active` is what of it one token uses: all but idle experts.
    """

    params: int
    flops: int
    state_size: int
    params_nonembedding: int
    params_active: int
    seq_len: int


def cost(model: Any, length: int) -> Cost:
    """The cost of a model of `models.build` on one sequence of `length` tokens. Tied weights count once.

    Raises:
        ValueError: no token, or more than the model was built for; a layer that counts in fractions.
    """
    if not isinstance(length, Integral) or not 1 <= length <= model.embedding.max_length:
        raise ValueError(f"expected a length from 1 to max_length={model.embedding.max_length} tokens, got {length}")
    for layer in each(model.stack.layers):
        for what, count in (("flops", layer.flops(length)), ("state_size", layer.state_size(length))):
            if not isinstance(count, Integral):
                raise ValueError(f"{type(layer).__name__}.{what}({length}) must be a whole number, got {count!r}")
    params, embedding = _trained(model), model.embedding
    tied = model.head.weight is embedding.tokens.weight
    nonembedding = params - _trained(embedding) + (_trained(embedding.tokens) if tied else 0)
    idle = sum(_trained(layer) - layer.active_params() for layer in model.stack.layers)
    return Cost(
        params=params,
        flops=model.flops(length),
        state_size=model.stack.state_size(length),
        params_nonembedding=nonembedding,
        params_active=nonembedding - idle,
        seq_len=length,
    )


def _trained(module: Any) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
