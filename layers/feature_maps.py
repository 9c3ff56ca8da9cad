"""Feature maps of linear attention: phi with phi(q).phi(k) in place of exp(q.k / sqrt(d)).

A map is built for one head width and shared by the heads unless it says otherwise; `size` is the number of features.
Maps that look at the position say `positional`. To add one, register it here or in a plugin:
`@feature_maps.registry.register("name")`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernels.taylor_attention import packed_features, packed_size
from layers.base import positive
from mad.registry import Registry

registry = Registry("feature map")


class FeatureMap(nn.Module):
    """x (B, H, T, head_dim), positions (T,) or (B, 1, 1) -> (B, H, T, size)."""

    positional = False

    def __init__(self, head_dim: int, num_heads: int, max_length: int):
        super().__init__()
        self.head_dim, self.size = head_dim, head_dim

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def flops(self) -> int:
        """Of one vector."""
        return 0


def build_map(spec: str | Mapping[str, Any], head_dim: int, num_heads: int, max_length: int) -> FeatureMap:
    """A feature map from its name, or a mapping of name and options.

    Raises:
        ValueError: `spec` is neither, or the map, an option or a value does not exist.
    """
    name, options = registry.resolve(spec)
    return registry.build(name, head_dim, num_heads, max_length, **options)


@registry.register("elu")
class Elu(FeatureMap):
    """1 + elu(x). Katharopoulos et al. 2020 (arXiv 2006.16236)."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return 1 + F.elu(x)


@registry.register("relu")
class Relu(FeatureMap):
    """relu(x)."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


@registry.register("identity")
class Identity(FeatureMap):
    """x. Its products may be negative: normalisation may divide by almost nothing."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x


@registry.register("hadamard")
class Hadamard(FeatureMap):
    """(W1 x + b1) * (W2 x + b2), the MAD protocol's. Products may be negative, as with the identity."""

    def __init__(self, head_dim: int, num_heads: int, max_length: int):
        super().__init__(head_dim, num_heads, max_length)
        self.first, self.second = nn.Linear(head_dim, head_dim), nn.Linear(head_dim, head_dim)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.first(x) * self.second(x)

    def flops(self) -> int:
        return 4 * self.head_dim**2


@registry.register("t2r")
class T2R(FeatureMap):
    """relu(W x + b). Kasai et al. 2021 (arXiv 2103.13076)."""

    def __init__(self, head_dim: int, num_heads: int, max_length: int):
        super().__init__(head_dim, num_heads, max_length)
        self.linear = nn.Linear(head_dim, head_dim)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return F.relu(self.linear(x))

    def flops(self) -> int:
        return 2 * self.head_dim**2


@registry.register("dpfp")
class DPFP(FeatureMap):
    """r_i r_(i - j) for j = 1 .. nu with r = relu([x, -x]): 2 nu d features. Schlag et al. 2021 (arXiv 2102.11174)."""

    def __init__(self, head_dim: int, num_heads: int, max_length: int, *, nu: int = 1):
        super().__init__(head_dim, num_heads, max_length)
        positive(nu=nu)
        self.nu, self.size = nu, 2 * nu * head_dim

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        r = F.relu(torch.cat([x, -x], dim=-1))
        return torch.cat([r * r.roll(j, dims=-1) for j in range(1, self.nu + 1)], dim=-1)


@registry.register("cosformer")
class CosFormer(FeatureMap):
    """[relu(x) cos(a), relu(x) sin(a)], a = pi t / (2 max_length) at position t. Qin et al. 2022 (arXiv 2202.08791)."""

    positional = True

    def __init__(self, head_dim: int, num_heads: int, max_length: int):
        super().__init__(head_dim, num_heads, max_length)
        self.size, self.max_length = 2 * head_dim, max_length

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32  # bf16 counts to 256
        angle = (positions.to(wide) * (math.pi / 2 / self.max_length)).unsqueeze(-1)
        x = F.relu(x)
        return torch.cat([x * angle.cos(), x * angle.sin()], dim=-1)


@registry.register("performer")
class Performer(FeatureMap):
    """exp(w_i.x' - |x'|^2 / 2) / sqrt(m), x' = x / d^(1/4), for m fixed orthogonal directions w_i of Gaussian length.

    Choromanski et al. 2021 (FAVOR+, arXiv 2009.14794): unbiased for softmax's exp(q.k / sqrt(d)), provided that queries
    and keys are mapped by the same directions.
    """

    def __init__(self, head_dim: int, num_heads: int, max_length: int, *, num_features: int | None = None):
        super().__init__(head_dim, num_heads, max_length)
        self.size = 2 * head_dim if num_features is None else num_features
        positive(num_features=self.size)
        blocks = [random_rotation(head_dim) for _ in range(-(-self.size // head_dim))]
        lengths = torch.randn(self.size, head_dim, device="cpu").norm(dim=-1, keepdim=True)
        self.directions: torch.Tensor
        directions = torch.cat(blocks)[: self.size] * lengths
        self.register_buffer("directions", directions.to(torch.get_default_device()))

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = x * self.head_dim**-0.25
        return torch.exp(x @ self.directions.t() - x.square().sum(-1, keepdim=True) / 2) * self.size**-0.5

    def flops(self) -> int:
        return 2 * self.head_dim * self.size


def random_rotation(d: int) -> torch.Tensor:
    """A uniformly drawn orthogonal matrix (d, d): the signs that a QR decomposition favours are undone."""
    q, r = torch.linalg.qr(torch.randn(d, d, device="cpu"))
    return q * r.diagonal().sign()


@registry.register("taylor")
class Taylor(FeatureMap):
    """[1, x', x'_i x'_j], x' = x / d^(1/4): phi(q).phi(k) = 1 + t + t^2 / 2 with t = q.k / sqrt(d).

    Arora et al. 2024 (BASED, arXiv 2402.18668). The symmetric products are kept once: (d + 1) (d + 2) / 2 features.
    """

    def __init__(self, head_dim: int, num_heads: int, max_length: int):
        super().__init__(head_dim, num_heads, max_length)
        self.size = packed_size(head_dim)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return packed_features(x)


@registry.register("hedgehog")
class Hedgehog(FeatureMap):
    """[softmax(x W), softmax(-x W)] with W for each head, at first the identity: 2 d features.

    Zhang et al. 2024 (Hedgehog, arXiv 2402.04347), in the form of LoLCATs: a softmax for each sign, no bias.
    """

    def __init__(self, head_dim: int, num_heads: int, max_length: int):
        super().__init__(head_dim, num_heads, max_length)
        self.size = 2 * head_dim
        self.weight = nn.Parameter(torch.eye(head_dim).repeat(num_heads, 1, 1))

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight.to(x.dtype)
        return torch.cat([y.softmax(-1), (-y).softmax(-1)], dim=-1)

    def flops(self) -> int:
        return 2 * self.head_dim**2
