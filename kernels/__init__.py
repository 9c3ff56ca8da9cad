"""The algorithms under the layers: plain functions of tensors, each a torch reference and a Triton kernel that agree.

Layouts: attention-like q, k, v are (B, H, T, d); convolutions are (B, channels, L) with weights (channels, K).
`backend` is "auto" (Triton for CUDA tensors, else torch), "torch" or "triton"; `use_backend` sets what "auto" means.
All are differentiable unless they say otherwise, run inside torch.compile without a graph break and in CUDA graphs, and
give the same bits every time (no atomics).

To add a kernel, make a folder `kernels/NAME/`:
    __init__.py   the function that layers call: its docstring holds formula, shapes, errors and source; it checks the
                  shapes and chooses with `checks.use_triton`. Import it below.
    reference.py  the same in plain torch, fp64 kept: what runs without a GPU. It must not import Triton.
    triton.py     the kernels and their launches, as custom operators (`tiles.operator`) with a fake and a backward.
                  Block sizes by a named rule from shapes (`tiles.bucket`), not by autotuning: a sweep over many shapes
                  then compiles each kernel a handful of times. fp32 sums, `tiles.precision` for products.
    cases.py      shapes to time, and small shapes that reach every configuration: see `kernels.cases`.
and a test `tests/kernels/test_NAME.py` that holds it against an oracle (a loop, a dense matrix) with `testing.verify`.
The rest finds it by itself: `python -m kernels.offline NAME` compiles every configuration for an H100 without having
one, `python -m kernels.bench NAME` times it against torch, its rivals and its floor, and the tests test_every_kernel.py
and test_offline.py hold for it.
"""

from kernels.add_norm import add_norm
from kernels.block_diagonal_matmul import block_diagonal_glu, block_diagonal_matmul
from kernels.checks import use_backend, wide
from kernels.delta_rule import delta_rule
from kernels.dplr_delta_rule import dplr_delta_rule
from kernels.embedding import embedding
from kernels.fft_conv import fft_conv
from kernels.gated_mlp import gated_mlp
from kernels.hedgehog_attention import hedgehog_attention
from kernels.implicit_filter import implicit_filter
from kernels.linear_attention import linear_attention
from kernels.monarch_matmul import monarch_matmul
from kernels.rational_spectrum import rational_spectrum
from kernels.selective_scan import selective_scan
from kernels.shared_prefix_attention import shared_prefix_attention
from kernels.short_conv import short_conv, short_conv_streams
from kernels.sliding_attention import sliding_attention, sliding_step
from kernels.taylor_attention import taylor_attention, taylor_step
from kernels.toeplitz_attention import toeplitz_attention

__all__ = [
    "add_norm",
    "block_diagonal_glu",
    "block_diagonal_matmul",
    "delta_rule",
    "dplr_delta_rule",
    "embedding",
    "fft_conv",
    "gated_mlp",
    "hedgehog_attention",
    "implicit_filter",
    "linear_attention",
    "monarch_matmul",
    "rational_spectrum",
    "selective_scan",
    "shared_prefix_attention",
    "short_conv",
    "short_conv_streams",
    "sliding_attention",
    "sliding_step",
    "taylor_attention",
    "taylor_step",
    "toeplitz_attention",
    "use_backend",
    "wide",
]
