"""The two models of the MAD protocol around a stack: a language model, and an auto-encoder (compression)."""

import math
from typing import Any

import torch
from torch import nn

import kernels
from layers import filters
from layers.base import Layer, positive
from mad.memory import enough_for
from mad.models.positions import at_positions
from mad.models.stack import Norm, Stack
from mad.registry import check_switch, is_number, unknown

INITS = ("own", "normal", "gpt2")
OUTPUT_MAPS = ("out", "down")  # what layers call the map at their end


class LanguageModel(nn.Module):
    """Embedding, stack, norm, linear map to the vocabulary.

    No position embedding unless `positions` (learned, absolute); embeddings and output weights may be tied.
    """

    looks_ahead = False  # may a layer of it depend on later tokens?

    def __init__(
        self,
        stack: Any,
        dim: int,
        vocab_size: int,
        max_length: int,
        *,
        norm: str = "rms",
        tied_embeddings: bool = False,
        embed_dropout: float = 0.0,
        positions: bool = False,
        head_bias: bool = False,
    ):
        super().__init__()
        self.embedding = Embedding(dim, vocab_size, max_length, embed_dropout, positions)
        self.stack = Stack(stack, dim, max_length, norm)
        if self.stack.not_causal and not self.looks_ahead:
            raise ValueError(
                f"a language model needs causal layers, but {', '.join(self.stack.not_causal)} looks ahead; "
                "it fits the head 'autoencoder' only"
            )
        self.norm = Norm(norm, dim)
        self.head = nn.Linear(dim, vocab_size, bias=head_bias)
        nn.init.normal_(self.head.weight, std=0.02)
        if head_bias:
            nn.init.zeros_(self.head.bias)
        if tied_embeddings:
            self.head.weight = self.embedding.tokens.weight

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, T) -> logits (B, T, V); with positions (B, K), logits (B, K, V) at those alone."""
        x, y = self.stack.apart(self.embedding(tokens))
        return self.logits(x, y, positions)

    def logits(self, x: torch.Tensor, y: torch.Tensor | None, positions: torch.Tensor | None) -> torch.Tensor:
        """Of x + y, where there is a y."""
        if positions is not None:
            x, y = at_positions(x, positions), None if y is None else at_positions(y, positions)
        return self.head(self.norm(x, y, rounded=True)[1])

    def flops(self, length: int) -> int:
        return self.stack.flops(length) + 2 * length * self.head.in_features * self.head.out_features


class AutoEncoder(LanguageModel):
    """The stack encodes; the last position's vector alone is decoded at every position.

    To that vector a fixed sine-cosine code of each output position is added; the decoder is twice norm, linear, GELU
    (width dim), then norm and linear.
    """

    looks_ahead = True

    def __init__(self, stack: Any, dim: int, vocab_size: int, max_length: int, *, norm: str = "rms", **options: Any):
        super().__init__(stack, dim, vocab_size, max_length, norm=norm, **options)
        self.code: torch.Tensor
        self.register_buffer("code", sine_cosine_code(max_length, dim), persistent=False)
        self.decoder = Decoder(dim, norm)

    def _apply(self, fn: Any, recurse: bool = True) -> "AutoEncoder":
        unknown = self.code.is_meta
        super()._apply(fn, recurse)
        if unknown and not self.code.is_meta:
            self.code.copy_(sine_cosine_code(*self.code.shape))
        return self

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        x, y = self.stack.apart(self.embedding(tokens))
        summary = x[:, -1:] + y[:, -1:]  # (B, 1, dim)
        return self.logits(self.decoder(summary + self.code[: tokens.shape[1]]), None, positions)

    def flops(self, length: int) -> int:
        return super().flops(length) + 4 * length * self.code.shape[1] ** 2


class Decoder(nn.Module):
    """Twice norm, linear, GELU, width dim."""

    def __init__(self, dim: int, norm: str):
        super().__init__()
        self.norms = nn.ModuleList(Norm(norm, dim) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.dtype  # the norms' own, whatever the products between them are rounded to
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = nn.functional.gelu(linear(norm(x.to(wide), rounded=True)[1]))
        return x.to(wide)


class Embedding(nn.Module):
    """Token vectors, plus learned positions where wanted; dropout after."""

    def __init__(self, dim: int, vocab_size: int, max_length: int, dropout: float, positions: bool):
        super().__init__()
        if not is_number(dropout) or not 0 <= dropout <= 1:
            raise ValueError(f"embed_dropout must be a number from 0 to 1, got {dropout!r}")
        self.tokens = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.max_length = max_length
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, dim)) if positions else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.dim() != 2:
            raise ValueError(f"expected tokens (B, T), got {tuple(tokens.shape)}")
        if tokens.shape[1] > self.max_length:  # not all layers have a limit; learned positions and the decoder's do
            raise ValueError(f"the model was built for max_length={self.max_length}, got {tokens.shape[1]} tokens")
        x = kernels.embedding(self.tokens.weight, tokens)
        if self.positions is not None:
            x = x + self.positions[: tokens.shape[1]]
        return self.dropout(x)


HEADS = {"lm": LanguageModel, "autoencoder": AutoEncoder}


def build(
    stack: Any,
    dim: int,
    vocab_size: int,
    max_length: int,
    head: str = "lm",
    *,
    norm: str = "rms",
    tied_embeddings: bool = False,
    embed_dropout: float = 0.0,
    positions: bool = False,
    head_bias: bool = False,
    init: str = "own",
    own_filters: bool = False,
) -> Any:
    """Build a model, (B, T) int64 token ids -> (B, T, vocab_size) logits, any T <= max_length.

    Args:
        stack: layers in the notation of `mad.models.notation`.
        head: "lm" or "autoencoder".
        norm: "rms" or "layer", before every layer and before the head.
        init: of linear maps: "own", as each layer draws them; "normal", each nn.Linear and experts N(0, 0.02) with zero
            biases, as the MAD protocol's published code until 2025; "gpt2", the same, but those that end a branch of
            the stack smaller by the square root of the number of branches (Radford et al. 2019), as Zoology's code.
        own_filters: those within the filter of a long convolution as it draws them, whatever `init`: four N(0, 0.02)
            one after the other leave an implicit filter taps of 1e-7.

    Raises:
        ValueError: an unknown head, norm, init, layer or option, or sizes that do not fit, be it into memory.
    """
    positive(dim=dim, vocab_size=vocab_size, max_length=max_length)
    check_switch("tied_embeddings", tied_embeddings)
    check_switch("positions", positions)
    check_switch("head_bias", head_bias)
    check_switch("own_filters", own_filters)
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    if init not in INITS:
        raise unknown("init", init, INITS)
    with enough_for(f"a model with dim={dim}, vocab_size={vocab_size}, max_length={max_length}"):  # layers say it first
        model = HEADS[head](
            stack,
            dim,
            vocab_size,
            max_length,
            norm=norm,
            tied_embeddings=tied_embeddings,
            embed_dropout=embed_dropout,
            positions=positions,
            head_bias=head_bias,
        )
    if init != "own":
        draw_linear_maps(model, len(model.stack.layers) ** -0.5 if init == "gpt2" else 1.0, own_filters)
    return model


def draw_linear_maps(model: nn.Module, last: float, own_filters: bool) -> None:
    """Draw all linear maps of a model anew, N(0, 0.02), those of experts too, those at a layer's end times `last`; the
    biases of nn.Linear are zero. Convolutions, skips and all else that is no linear map stay as they are, and where
    `own_filters` the filters'."""
    maps: dict[str, Any] = {}  # parameters by name
    kinds = tuple(filters.registry.get(name) for name in filters.registry.names()) if own_filters else ()
    left = {part for module in model.modules() if isinstance(module, kinds) for part in module.modules()}
    for path, module in model.named_modules():
        if module in left:
            continue
        if isinstance(module, nn.Linear):
            maps[f"{path}.weight"] = module.weight
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Layer):
            maps |= {f"{path}.{name}": getattr(module, name) for name in module.linear_maps}
    for weight in maps.values():
        nn.init.normal_(weight, std=0.02)
    for path, module in model.named_modules():
        for name in OUTPUT_MAPS if isinstance(module, Layer) else ():
            end = maps.get(f"{path}.{name}.weight", maps.get(f"{path}.{name}"))
            if end is not None:
                end.detach().mul_(last)


def sine_cosine_code(length: int, dim: int) -> torch.Tensor:
    """The fixed position code of the MAD protocol's decoder, (length, dim): sines, then cosines, frequencies from 1
    to 1e-4, this one included (after Vaswani et al. 2017)."""
    half = -(-dim // 2)
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / max(1, half - 1))
    angles = torch.arange(length).unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim]
