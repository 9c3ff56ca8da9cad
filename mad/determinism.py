"""Whether torch refuses operations that do not repeat their results bit for bit: a setting of the whole process."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

memory: Any = torch.utils.deterministic


@contextlib.contextmanager
def algorithms(deterministic: bool, *, warn_only: bool = False, fill: bool = True) -> Iterator[None]:
    """Inside, as `torch.use_deterministic_algorithms` sets it; afterwards as it was.

    False is for what is the same in any order all the same: sums of whole numbers, places that are written once.

    Args:
        warn_only: a warning in place of the error.
        fill: with deterministic, whether memory that nothing has been written to holds NaN, as torch has it.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned, filled = torch.is_deterministic_algorithms_warn_only_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    memory.fill_uninitialized_memory = filled and fill
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled
