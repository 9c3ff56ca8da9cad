"""Shapes of Hydragen's micro-benchmark: one new token of B sequences, a prefix of P tokens, suffixes of U.

Besides, n new tokens; and S prefixes on one more level, "ragged": the last half as long as the first.
"""

import torch
import torch.nn.functional as F

from kernels.cases import Work

BACKWARD = False
SHAPES = [
    {"B": batch, "P": prefix, "U": suffix, "Hq": 8, "Hkv": 1, "d": 128}
    for batch, prefix in ((512, 1024), (1024, 2048), (2048, 4096), (4096, 8192))
    for suffix in (0, 128, 512)
] + [
    {"B": 1024, "P": 2048, "U": 128, "Hq": 8, "Hkv": 1, "d": 128, "n": 4},
    {"B": 1024, "P": 2048, "U": 128, "Hq": 8, "Hkv": 1, "d": 128, "S": 16, "ragged": True},
]
CONFIGS = [
    {"B": 2, "P": 2000, "U": 20, "Hq": 4, "Hkv": 2, "d": 64},
    {"B": 64, "P": 70, "U": 20, "Hq": 8, "Hkv": 2, "d": 128},
    {"B": 3, "P": 70, "U": 20, "Hq": 2, "Hkv": 2, "d": 32},
    {"B": 3, "P": 70, "U": 20, "Hq": 2, "Hkv": 2, "d": 200},
    {"B": 64, "P": 70, "U": 20, "Hq": 8, "Hkv": 1, "d": 128, "n": 4},
    {"B": 64, "P": 700, "U": 20, "Hq": 8, "Hkv": 2, "d": 128, "n": 3, "S": 2, "ragged": True},
    {"B": 4, "P": 70, "U": 20, "Hq": 4, "Hkv": 2, "d": 64, "n": 3, "S": 2, "ragged": True},
    *({"B": 40, "P": 70, "U": 20, "Hq": 4, "Hkv": 2, "d": d, "n": 32, "S": 2, "ragged": True} for d in (200, 100, 40)),
]


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str) -> dict:
    batch, heads, d = shape["B"], shape["Hkv"], shape["d"]

    def level(prefixes, size):
        return tuple(torch.randn(prefixes, size, heads, d, dtype=dtype, device=device) for _ in range(2))

    levels: list[tuple[torch.Tensor, ...]] = [level(1, shape["P"])]
    if shape.get("ragged"):
        shorter = torch.arange(shape["S"], device=device) >= shape["S"] // 2
        levels.append((*level(shape["S"], shape["P"]), shape["P"] // (1 + shorter.int())))
    k, v = level(batch, shape["U"])
    q = torch.randn(batch, shape.get("n", 1), shape["Hq"], d, dtype=dtype, device=device)
    lengths = torch.full((batch,), shape["U"], device=device)
    return {"q": q, "prefixes": levels, "suffix_k": k, "suffix_v": v, "suffix_lengths": lengths}


def work(shape: dict[str, int], size: int, backward: bool) -> Work:
    """The prefixes once, the suffixes, queries and outputs; two products of a query with every key."""
    queries, prefixes, seen = shape["B"] * shape.get("n", 1) * shape["Hq"], shape["P"], shape["P"]
    if shape.get("ragged"):
        prefixes += 0.75 * shape["P"] * shape["S"]
        seen += 0.75 * shape["P"]
    keys = prefixes + shape["B"] * shape["U"]
    vectors = 2 * keys * shape["Hkv"] + 2 * queries
    pairs = queries * (seen + shape["U"])
    return Work(bytes=vectors * shape["d"] * size, flops=4 * pairs * shape["d"], exps=pairs)


def rivals():
    replicated = {}  # keys and values are copied once, as a cache would hold them: the copy is not timed

    def sdpa(q, prefixes, suffix_k, suffix_v, suffix_lengths):
        """Every sequence with its own copy of the prefix; the heads of a group as query tokens of one key head."""
        if len(prefixes) > 1:
            raise NotImplementedError("prefixes of different lengths")
        if replicated.get("q") is not q:
            replicated.clear()
            (k, v), batch = prefixes[0], q.shape[0]
            full = (torch.cat([p.expand(batch, -1, -1, -1), s], 1) for p, s in ((k, suffix_k), (v, suffix_v)))
            replicated.update(q=q, keys=[t.transpose(1, 2).contiguous() for t in full])
        k, v = replicated["keys"]
        rows = q.unflatten(2, (k.shape[1], -1)).transpose(1, 2).flatten(2, 3)  # (B, Hkv, n G, d)
        return F.scaled_dot_product_attention(rows, k, v)

    return {"SDPA, copies": sdpa}
