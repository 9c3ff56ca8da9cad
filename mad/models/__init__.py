"""Hybrid stacks from layer names.

m = models.build(stack=["hyena-swiglu*2"], dim=128, vocab_size=16, max_length=128, head="lm")
logits = m(tokens)                      # (B, T) -> (B, T, V)
models.cost(m, length=128)              # parameters, forward FLOPs, state size of one sequence
"""

from mad.models.build import INITS, build
from mad.models.cost import Cost, cost
from mad.models.notation import compact, expand

__all__ = ["INITS", "Cost", "build", "compact", "cost", "expand"]
