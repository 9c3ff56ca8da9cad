"""Dense channel mixers: MLP, SwiGLU, Monarch Mixer's block-diagonal GLU, and none."""

import math

import torch
import torch.nn.functional as F
from torch import nn

import kernels
import layers
from layers.base import ChannelMixer, positive, split_heads


@layers.register("mlp", kind="channel")
class MLP(ChannelMixer):
    """y = W2 gelu(W1 x), tanh GELU, no biases; width 4 dim. FLOPs a token: 4 dim width."""

    takes_rounded = True

    def __init__(self, dim: int, max_length: int, *, width: int | None = None):
        super().__init__(dim, max_length)
        width = 4 * dim if width is None else width
        positive(width=width)
        self.up, self.down = nn.Linear(dim, width, bias=False), nn.Linear(width, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_shape(x)
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def flops(self, length: int) -> int:
        return 4 * length * self.up.weight.numel()


@layers.register("swiglu", kind="channel")
class SwiGLU(ChannelMixer):
    """y = W3 (silu(W1 x) * W2 x), no biases; width 8 dim / 3 up to a multiple of 16. FLOPs a token: 6 dim width.

    Shazeer 2020 (arXiv 2002.05202).
    """

    takes_rounded = True

    def __init__(self, dim: int, max_length: int, *, width: int | None = None):
        super().__init__(dim, max_length)
        width = -(-8 * dim // 3 // 16) * 16 if width is None else width
        positive(width=width)
        self.width = width
        self.up, self.down = nn.Linear(dim, 2 * width, bias=False), nn.Linear(width, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_shape(x)
        return kernels.gated_mlp(x, self.up.weight, self.down.weight)

    def flops(self, length: int) -> int:
        return 6 * length * self.dim * self.width


@layers.register("identity", kind="channel")
class Identity(ChannelMixer):
    """y = x, the normed stream: what blocks without an MLP add in Zoology's code (Arora et al. 2023, arXiv 2312.04927).
    No parameters, no FLOPs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_shape(x)
        return x

    def flops(self, length: int) -> int:
        return 0


@layers.register("monarch_mlp", kind="channel")
class MonarchMLP(ChannelMixer):
    """y = B3 (gelu(B1 x) * B2 x) with block-diagonal B, one Monarch factor each.

    Fu et al. 2023 (M2, arXiv 2310.12109): 4 blocks, width 4 dim, and the initial weights of a dense map scaled by the
    square root of the number of blocks, so that activations keep their size. FLOPs a token: 6 dim width / num_blocks.
    """

    linear_maps = ("gate", "value", "down")

    takes_rounded = True

    def __init__(self, dim: int, max_length: int, *, num_blocks: int = 4, width: int | None = None):
        super().__init__(dim, max_length)
        width = 4 * dim if width is None else width
        positive(width=width)
        split_heads(math.gcd(dim, width), num_blocks, f"gcd(dim={dim}, width={width})", "num_blocks")
        self.width, self.num_blocks = width, num_blocks
        self.gate, self.value = self.new_blocks(dim, width), self.new_blocks(dim, width)
        self.down = self.new_blocks(width, dim)

    def new_blocks(self, inputs: int, outputs: int) -> nn.Parameter:
        block = torch.empty(self.num_blocks, inputs // self.num_blocks, outputs // self.num_blocks)
        bound = (self.num_blocks / inputs) ** 0.5
        return nn.Parameter(block.uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_shape(x)
        return kernels.block_diagonal_matmul(kernels.block_diagonal_glu(x, self.gate, self.value), self.down)

    def flops(self, length: int) -> int:
        return 6 * length * self.dim * self.width // self.num_blocks
