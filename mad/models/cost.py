"""What a model costs, from the layers' own formulas (torch's counter sees no FFT, scan or CPU attention)."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Of one sequence: trained parameters, forward FLOPs (a multiply-add is 2), recurrent state elements."""

    params: int
    flops: int
    state_size: int


def cost(model: Any, length: int) -> Cost:
    """The cost of a model of `models.build` on one sequence of `length` tokens. Tied weights count once."""
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Cost(params=params, flops=model.flops(length), state_size=model.stack.state_size(length))
