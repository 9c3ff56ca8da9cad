"""What a layer is: one residual branch, in parallel over a sequence and, where causal, one token at a time."""

from numbers import Integral
from typing import Any

import torch
from torch import nn

from mad.registry import is_number


class Layer(nn.Module):
    """One residual branch, (B, T, dim) -> (B, T, dim), without the norm before it and the sum after it.

    A subclass takes `(dim, max_length, *, options...)`, keeps both, and documents formula, source, state size and
    FLOPs. `forward` must be capturable in a CUDA graph: static shapes, no `.item()`, no branch on data.
    """

    causal = True  # False: an output may depend on later inputs; there is no step then
    linear_maps: tuple[str, ...] = ()  # parameters that are linear maps without being an nn.Linear: those of experts
    takes_rounded = False  # True: under autocast x is rounded once before all else, so it may come rounded
    countable = True  # True: `flops` is what torch's FLOP counter sees; say False where the work is not matmuls

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        forward, rounded = (
            next(i for i, c in enumerate(cls.__mro__) if name in vars(c)) for name in ("forward", "takes_rounded")
        )
        if forward < rounded:
            cls.takes_rounded = False  # that was said of another forward

    def __init__(self, dim: int, max_length: int):
        super().__init__()
        positive(dim=dim, max_length=max_length)
        self.dim, self.max_length = dim, max_length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, dim), any T <= max_length -> (B, T, dim)."""
        raise NotImplementedError

    def init_state(self, batch: int) -> Any:
        """The state after zero tokens: a (possibly nested) tuple of tensors, batch first."""
        raise NotImplementedError(f"{type(self).__name__} has no recurrent form")

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """x_t (B, dim), state -> y_t (B, dim), next state; token by token it equals `forward`.

        Beyond `max_length` it raises as `forward` does where the layer has nothing for later tokens (taps, positions)
        or its state grows; a recurrence that does not count its tokens goes on.
        """
        raise NotImplementedError(f"{type(self).__name__} has no recurrent form")

    def state_size(self, length: int) -> int:
        """Elements that must be kept per sequence after `length` tokens: those of `step`'s state."""
        raise NotImplementedError(f"{type(self).__name__} does not say its state_size(length), in elements")

    def flops(self, length: int) -> int:
        """Forward FLOPs of one sequence of `length` tokens, a multiply-add counted as 2.

        Norms, activations and the generation of implicit filters (paid once a batch) are not counted.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say its flops(length), forward, of one sequence")

    def active_params(self) -> int:
        """Trained parameters that one token uses: all, but where it is routed through some of the experts only."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def check_shape(self, x: torch.Tensor) -> None:
        """Raise for an x that is not (B, T, dim)."""
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"{type(self).__name__} expected x (B, T, {self.dim}), got {tuple(x.shape)}")

    def check_length(self, x: torch.Tensor) -> None:
        """The same, and for more tokens than the layer was built for."""
        self.check_shape(x)
        self.check_tokens(x.shape[1])

    def check_tokens(self, number: int) -> None:
        """The same for a number of tokens: in `step`, those that it comes to with the new one."""
        if number > self.max_length:
            raise ValueError(f"{type(self).__name__} was built for max_length={self.max_length}, got {number} tokens")

    def zeros(self, *shape: int) -> torch.Tensor:
        """Zeros where the parameters are and of their type, for `init_state`."""
        like = next(self.parameters())
        return torch.zeros(*shape, dtype=like.dtype, device=like.device)


class ChannelMixer(Layer):
    """A layer that acts on each position alone: no state, and a step is a forward of length one."""

    def init_state(self, batch: int) -> tuple:
        return ()

    def step(self, x_t: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return self(x_t.unsqueeze(1)).squeeze(1), state

    def state_size(self, length: int) -> int:
        return 0


def positive(**options: int) -> None:
    """Raise for options that must be whole numbers of at least 1: `positive(num_heads=num_heads)`."""
    for name, value in options.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def above_zero(**options: float) -> None:
    """The same for finite numbers above 0."""
    for name, value in options.items():
        if not is_number(value) or value <= 0:
            raise ValueError(f"{name} must be a number above 0, got {value!r}")


def split_heads(dim: int, parts: int, what: str = "dim", option: str = "num_heads") -> int:
    """The width of a head, or with option="head_dim" their number; raises where `parts`, the value of `option`, does
    not divide `dim`, which is called `what`, and names the nearest that does."""
    positive(**{option: parts})
    if dim % parts:
        fitting = [n for n in range(1, dim + 1) if dim % n == 0]
        near = min(fitting, key=lambda n: abs(n - parts))
        raise ValueError(f"{option}={parts} does not divide {what}={dim}; the nearest that does is {near}")
    return dim // parts
