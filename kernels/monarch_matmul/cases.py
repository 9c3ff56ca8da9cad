"""Square Monarch matrices: 1,024 features in 32 blocks of 32, 4,096 in 64 of 64."""

import torch

from kernels.cases import Work

SHAPES = [{"N": 128 * 128, "m": 16}, {"N": 16 * 1024, "m": 32}, {"N": 8 * 1024, "m": 64}]
BACKEND = "triton"  # "auto" is torch, which was measured faster
CONFIGS = [{"N": 70, "m": 64}, {"N": 70, "m": 32}, {"N": 70, "m": 16}, {"N": 20, "m": 16}]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    m = shape["m"]
    w1, w2 = (torch.randn(m, m, m, dtype=dtype, device=device) * m**-0.5 for _ in range(2))
    return {"x": torch.randn(shape["N"], m * m, dtype=dtype, device=device), "w1": w1, "w2": w2}


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """Features in and out once, although two launches write those in between as well."""
    features, weights = shape["N"] * shape["m"] ** 2, 2 * shape["m"] ** 3
    moved = 3 * features + 2 * weights if backward else 2 * features + weights
    return Work(bytes=moved * size, flops=(8 if backward else 4) * features * shape["m"])


def rivals():
    def bmm(x, w1, w2):
        y = torch.bmm(x.unflatten(-1, (w1.shape[0], -1)).transpose(0, 1), w1.transpose(1, 2))  # (k, N, q)
        y = y.transpose(0, 1).reshape(x.shape[0], w2.shape[2], w2.shape[0]).permute(2, 0, 1)  # (l, N, r)
        return torch.bmm(y, w2.transpose(1, 2)).permute(1, 2, 0).flatten(1)

    return {"bmm": bmm}
