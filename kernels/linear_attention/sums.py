"""The kernels of linear attention: one sum over pairs of tokens is the forward pass and each of its three gradients.

With g = dy / (eps + sum of weights), all four have the same form, out[t] = sum_s (a[t].b[s]) c[s]:

    y   a = q   b = k   c = v   s <= t          dq  a = g   b = v   c = k   s <= t
    dv  a = k   b = q   c = g   s >= t          dk  a = v   b = g   c = q   s >= t

Two kernels: the states that the chunks of 64 tokens find, by a scan over chunks, a tile of the state a program (k^T v
forward, q^T g backward; computed anew in the backward pass); then every output from its chunk's tokens and the state
found, all chunks at once. The normaliser is one more column of v (ones) and of g (delta = -g.y): a vector beside the
state, no wider tile.

Decays enter as sums of logarithms over the tokens between two, each formed by adding, never by subtracting, so an
exponent is at most 0 and a strong decay swallows no weak one. With a decay a channel a program has 16 rows: other
tokens of the chunk are met at the edge of these 16, by a product of what each decays to there; the rows among
themselves one token at a time, in fp32. The gradient of a decay at u is the sum of q.dq - k.dk over t >= u. A token's
own product is in both and does not decay; it is left out of both before they are rounded.

Half precision: scores and decayed keys are rounded to the type of the data; in fp16 scores are scaled by the largest in
a row. The state, which adds up over the sequence, is fp32 and is read as TF32 (10 bits, the range of fp32).
"""
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAssignmentType=false

import torch
import triton
import triton.language as tl

from kernels.tiles import bucket, grid, precision

STRONGEST = tl.constexpr(-100.0)  # exp(-100) is 0 in fp32; keeps -inf out of sums that a mask multiplies


@triton.jit
def scaled_product(p, c, PRECISION: tl.constexpr):
    """p @ c with p rounded to c's type; fp16's range is narrow, so there each row is scaled by its largest first."""
    if c.dtype == tl.float16:
        largest = tl.max(tl.abs(p), 1)
        largest = tl.where(largest > 0, largest, 1.0)
        return tl.dot((p / largest[:, None]).to(c.dtype), c) * largest[:, None]
    else:
        return tl.dot(p.to(c.dtype), c, input_precision=PRECISION)


@triton.jit
def scaled_right_product(a, b, PRECISION: tl.constexpr):
    """a @ b with b rounded to a's type; in fp16 it is scaled as a whole by its largest first."""
    if a.dtype == tl.float16:
        largest = tl.max(tl.abs(b))
        largest = tl.where(largest > 0, largest, 1.0)
        return tl.dot(a, (b / largest).to(a.dtype)) * largest
    else:
        return tl.dot(a, b.to(a.dtype), input_precision=PRECISION)


@triton.jit
def logs(decay, mask):
    """Log-decays in fp32, 0 where masked."""
    g = tl.load(decay, mask=mask, other=0.0).to(tl.float32)
    return tl.maximum(g, STRONGEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def delta_kernel(dy, y, delta, H, T, N, dy_b, dy_h, dy_t, y_b, y_h, y_t, BT: tl.constexpr, BN: tl.constexpr):
    """delta[t] = -dy[t].y[t]: by the sum of weights, the gradient of its logarithm."""
    head = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    dy += head // H * dy_b + head % H * dy_h
    y += head // H * y_b + head % H * y_h
    total = tl.zeros((BT,), tl.float32)
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)
        mask = (t < T)[:, None] & (n < N)[None, :]
        g = tl.load(dy + t[:, None] * dy_t + n[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(g * tl.load(y + t[:, None] * y_t + n[None, :], mask=mask, other=0.0).to(tl.float32), 1)
    tl.store(delta + head * T + t, -total, mask=t < T)


@triton.jit
def states_kernel(
    b, c, decay, inverse, delta, first, last, states, beside,
    H, T, K, N, b_b, b_h, b_t, c_b, c_h, c_t, g_b, g_h, g_t,
    REVERSE: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of the state as each chunk finds it: sums of b^T c, b = k, c = v over the chunks before; with REVERSE
    b = q, c = g over those after. states (B H, chunks, F, dv), beside (B H, chunks, F); first, last (B H, F, W)."""
    head = tl.program_id(0).to(tl.int64)
    batch, place = head // H, head % H
    W = N + 1 if NORMALIZE else N
    b += batch * b_b + place * b_h
    c += batch * c_b + place * c_h
    if DECAY != "none":
        decay += batch * g_b + place * g_h
    i = tl.arange(0, C)
    kk = tl.program_id(1) * BK + tl.arange(0, BK)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    live_k, live_n = kk < K, n < N
    live_s = live_k[:, None] & live_n[None, :]
    edge = (head * K + kk) * W
    state = tl.zeros((BK, BN), tl.float32)
    z = tl.zeros((BK,), tl.float32)
    if FIRST:
        state += tl.load(first + edge[:, None] + n[None, :], mask=live_s, other=0.0)
        if NORMALIZE:
            z += tl.load(first + edge + N, mask=live_k, other=0.0)
    chunks = tl.cdiv(T, C)
    for step in range(0, chunks):
        chunk = chunks - 1 - step if REVERSE else step
        t = chunk * C + i
        live = t < T
        where = (head * chunks + chunk) * K + kk
        tl.store(states + where[:, None] * N + n[None, :], state, mask=live_s)
        y = tl.load(b + t[None, :] * b_t + kk[:, None], mask=live[None, :] & live_k[:, None], other=0.0)  # (BK, C)
        values = tl.load(c + t[:, None] * c_t + n[None, :], mask=live[:, None] & live_n[None, :], other=0.0)  # (C, BN)
        entering = y.to(tl.float32)
        through = 1.0
        added = live if REVERSE else (t + 1 < T) & (i + 1 < C)
        ahead = 0 if REVERSE else 1  # a key decays by the tokens after it, a query by itself and those before
        if DECAY == "scalar":
            g = logs(decay + (t + ahead) * g_t, added)
            entering *= tl.exp(tl.cumsum(g, reverse=not REVERSE))[None, :]
            through = tl.exp(tl.sum(logs(decay + t * g_t, live)))
        if DECAY == "channel":
            place_g = decay + t[None, :] * g_t + kk[:, None]
            g = logs(place_g + ahead * g_t, added[None, :] & live_k[:, None])
            entering *= tl.exp(tl.cumsum(g, 1, reverse=not REVERSE))
            through = tl.exp(tl.sum(logs(place_g, live[None, :] & live_k[:, None]), 1))
        scale = 1.0
        if NORMALIZE and REVERSE:
            r = tl.load(inverse + head * T + t, mask=live, other=0.0)
            if y.dtype == tl.float16:
                scale = tl.max(tl.abs(r))
                scale = tl.where(scale > 0, scale, 1.0)
                r /= scale
            entering *= r[None, :]
        if NORMALIZE:
            tl.store(beside + where, z, mask=live_k & (0 * kk + tl.program_id(2) == 0))
            if REVERSE:
                more = scale * tl.load(delta + head * T + t, mask=live, other=0.0)
                z = z * through + tl.sum(entering * more[None, :], 1)
            else:
                z = tl.where(live_k, z * through + tl.sum(entering, 1), 0.0)  # Triton 3.6 fails on the bare sum
        new = scale * tl.dot(entering.to(y.dtype), values, input_precision=PRECISION)
        if DECAY == "channel":
            state = state * through[:, None] + new
        else:
            state = state * through + new
    if LAST:
        tl.store(last + edge[:, None] + n[None, :], state, mask=live_s)
        if NORMALIZE:
            tl.store(last + edge + N, z, mask=live_k & (0 * kk + tl.program_id(2) == 0))


@triton.jit
def sum_kernel(
    a, b, c, own, out, decay, inverse, delta, states, beside, slope, eps,
    H, T, K, N, heads,
    a_b, a_h, a_t, b_b, b_h, b_t, c_b, c_h, c_t, own_b, own_h, own_t, out_b, out_h, out_t, g_b, g_h, g_t,
    ROLE: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, STATES: tl.constexpr,
    PRECISION: tl.constexpr, CARRIED: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """R rows of "y", "dq", "dk" or "dv", a block of columns: from the chunk's C tokens and from the state it found.

    own: q for dq and k for dk, whose product with the gradient goes to `slope` where there is a decay.
    inverse: 1 / (eps + sum of weights), written by "y".
    """
    REVERSE: tl.constexpr = ROLE == "dk" or ROLE == "dv"
    TURNED: tl.constexpr = ROLE == "dq" or ROLE == "dk"  # contracts over values, its columns are features
    ROWS: tl.constexpr = DECAY == "channel" and not TURNED  # each contracted feature has its decay
    COLUMNS: tl.constexpr = DECAY == "channel" and TURNED  # each column has
    SLOPE: tl.constexpr = TURNED and DECAY != "none"
    head = tl.program_id(0).to(tl.int64)
    batch, place = head // H, head % H
    chunk = tl.program_id(1) // (C // R)
    low = tl.program_id(1) % (C // R) * R  # the first row's place in the chunk
    a += batch * a_b + place * a_h
    b += batch * b_b + place * b_h
    c += batch * c_b + place * c_h
    if DECAY != "none":
        decay += batch * g_b + place * g_h
    i, j = low + tl.arange(0, R), tl.arange(0, C)
    t, s = chunk * C + i, chunk * C + j
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    live_t, live_s, live_n = t < T, s < T, n < N
    met = (i[:, None] <= j[None, :]) if REVERSE else (i[:, None] >= j[None, :])
    strictly = (i[:, None] < j[None, :]) if REVERSE else (i[:, None] > j[None, :])
    # With a decay a channel the rows are anchored where they meet the other tokens of the chunk: `apart` is the tokens
    # beyond, `ahead_*` the step from a token to the first that decays it on its way there.
    apart = (j >= low + R) if REVERSE else (j < low)
    ahead_t, ahead_s = (1, 0) if REVERSE else (0, 1)
    live_g = live_t if not REVERSE else (t + 1 < T) & (i + 1 < low + R)
    live_a = (apart & live_s) if REVERSE else (j + 1 < low) & (s + 1 < T)
    where = (head * tl.cdiv(T, C) + chunk) * (N * K)
    if NORMALIZE:
        if ROLE != "y":
            r_s = tl.load(inverse + head * T + s, mask=live_s, other=0.0)
        if TURNED:
            d = tl.load(delta + head * T + (s if REVERSE else t), mask=live_s if REVERSE else live_t, other=0.0)

    p = tl.zeros((R, C), tl.float32)
    near = tl.zeros((R, C), tl.float32)
    acc = tl.zeros((R, BN), tl.float32)
    total = tl.zeros((R,), tl.float32)
    for k0 in range(0, K, BK):
        kk = k0 + tl.arange(0, BK)
        live_k = kk < K
        x = tl.load(a + t[:, None] * a_t + kk[None, :], mask=live_t[:, None] & live_k[None, :], other=0.0)  # (R, BK)
        y = tl.load(b + s[None, :] * b_t + kk[:, None], mask=live_s[None, :] & live_k[:, None], other=0.0)  # (BK, C)
        wide = x.to(tl.float32)
        if ROWS:
            g = logs(decay + (t[:, None] + ahead_t) * g_t + kk[None, :], live_g[:, None] & live_k[None, :])
            wide *= tl.exp(tl.cumsum(g, 0, reverse=REVERSE))
            others = decay + s[None, :] * g_t + kk[:, None]
            g = logs(others + ahead_s * g_t, live_a[None, :] & live_k[:, None])  # (BK, C)
            y = (y * tl.exp(tl.cumsum(g, 1, reverse=not REVERSE))).to(y.dtype)
            p += tl.dot(wide.to(x.dtype), y, input_precision=PRECISION)
            # among the rows themselves one token at a time, from the nearest on: each adds one logarithm
            log = tl.zeros((R, BK), tl.float32)
            for step in range(0, R):
                at = low + (step if REVERSE else R - 1 - step)
                u = chunk * C + at
                inside = live_k & (0 * kk + u + ahead_s < T) & (0 * kk + at + ahead_s < low + R)
                more = logs(decay + (u + ahead_s) * g_t + kk, inside)
                log = tl.where((i < at if REVERSE else i > at)[:, None], log + more[None, :], 0.0)
                other = tl.load(b + u * b_t + kk, mask=live_k & (0 * kk + u < T), other=0.0).to(tl.float32)
                one = tl.sum(x.to(tl.float32) * other[None, :] * tl.exp(log), 1)
                near += tl.where((j == at)[None, :], one[:, None], 0.0)
        else:
            p += tl.dot(x, y, input_precision=PRECISION)
        if STATES:
            tile = (kk[:, None] + n[None, :] * K) if TURNED else (kk[:, None] * N + n[None, :])
            state = tl.load(states + where + tile, mask=live_k[:, None] & live_n[None, :], other=0.0)  # (BK, BN)
            if NORMALIZE and ROLE == "y":
                z = tl.load(beside + (head * tl.cdiv(T, C) + chunk) * K + kk, mask=live_k, other=0.0)
            if ROWS:
                g = logs(others, (apart & live_s)[None, :] & live_k[:, None])
                reach = tl.exp(tl.sum(g, 1))
                state *= reach[:, None]
                if NORMALIZE and ROLE == "y":
                    z *= reach
            acc += tl.dot(wide, state, input_precision=CARRIED)
            if NORMALIZE and ROLE == "y":
                total += tl.sum(wide * z[None, :], 1)
    if ROWS:
        p = tl.where(apart[None, :], p, near)
    if NORMALIZE and TURNED:
        p += d[None, :] if REVERSE else d[:, None]
        if STATES:
            z = tl.load(beside + (head * tl.cdiv(T, C) + chunk) * N + n, mask=live_n, other=0.0)
            acc += (z[None, :] + tl.zeros((R, 1), tl.float32)) if REVERSE else d[:, None] * z[None, :]
    if DECAY == "scalar":  # where R = C
        if REVERSE:
            between = tl.cumsum(tl.where(strictly, logs(decay + s * g_t, live_s)[None, :], 0.0), 1)
            g = logs(decay + (t + 1) * g_t, (t + 1 < T) & (i + 1 < C))
        else:
            g = logs(decay + t * g_t, live_t)
            between = tl.cumsum(tl.where(strictly, g[:, None], 0.0), 0)
        p *= tl.exp(between)
        reach = tl.exp(tl.cumsum(g, reverse=REVERSE))
        acc *= reach[:, None]
        total *= reach
    if NORMALIZE and REVERSE:
        p *= r_s[None, :]
    p = tl.where(met, p, 0.0)
    if ROLE == "y":
        total += tl.sum(p, 1)
    if SLOPE:
        diagonal = tl.sum(tl.where(i[:, None] == j[None, :], p, 0.0), 1)
        p = tl.where(strictly, p, 0.0)
    z = tl.load(c + s[:, None] * c_t + n[None, :], mask=live_s[:, None] & live_n[None, :], other=0.0)  # (C, BN)
    if COLUMNS:
        others = decay + s[:, None] * g_t + n[None, :]
        acc *= tl.exp(tl.sum(logs(others, (apart & live_s)[:, None] & live_n[None, :]), 0))[None, :]
        g = logs(others + ahead_s * g_t, live_a[:, None] & live_n[None, :])
        z = (z * tl.exp(tl.cumsum(g, 0, reverse=not REVERSE))).to(z.dtype)
        acc += scaled_product(tl.where(apart[None, :], p, 0.0), z, PRECISION)
        g = logs(decay + (t[:, None] + ahead_t) * g_t + n[None, :], live_g[:, None] & live_n[None, :])
        acc *= tl.exp(tl.cumsum(g, 0, reverse=REVERSE))
        log = tl.zeros((R, BN), tl.float32)
        for step in range(0, R):
            at = low + (step if REVERSE else R - 1 - step)
            u = chunk * C + at
            inside = live_n & (0 * n + u + ahead_s < T) & (0 * n + at + ahead_s < low + R)
            more = logs(decay + (u + ahead_s) * g_t + n, inside)
            log = tl.where((i < at if REVERSE else i > at)[:, None], log + more[None, :], 0.0)
            other = tl.load(c + u * c_t + n, mask=live_n & (0 * n + u < T), other=0.0).to(tl.float32)
            one = tl.sum(tl.where((j == at)[None, :], p, 0.0), 1)
            acc += one[:, None] * other[None, :] * tl.exp(log)
    else:
        acc += scaled_product(p, z, PRECISION)
    mask = live_t[:, None] & live_n[None, :]
    if SLOPE:
        product = acc * tl.load(
            own + batch * own_b + place * own_h + t[:, None] * own_t + n[None, :], mask=mask, other=0.0
        )
        if NORMALIZE and not REVERSE:
            product *= tl.load(inverse + head * T + t, mask=live_t, other=0.0)[:, None]
        if COLUMNS:
            tl.store(slope + (head * T + t[:, None]) * N + n[None, :], product, mask=mask)
        else:
            tl.store(slope + (tl.program_id(2) * heads + head) * T + t, tl.sum(product, 1), mask=live_t)
        acc += diagonal[:, None] * tl.load(c + t[:, None] * c_t + n[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORMALIZE and not REVERSE:
        if ROLE == "y":
            r = 1 / (total + eps)
            tl.store(inverse + head * T + t, r, mask=live_t & (0 * t + tl.program_id(2) == 0))
        else:
            r = tl.load(inverse + head * T + t, mask=live_t, other=0.0)
        acc *= r[:, None]
    tl.store(
        out + batch * out_b + place * out_h + t[:, None] * out_t + n[None, :], acc.to(out.dtype.element_ty), mask=mask
    )


def blocks(rows: int, columns: int, length: int, decay: str, fp32: bool) -> dict[str, int]:
    """Tokens a chunk, a tile of the state, warps. Products in fp32 are three of TF32, whose operands take registers:
    narrower tiles. 32 x 32 would spill in them and under a decay a channel."""
    chunk = bucket(length, 16, 64)
    channel = decay == "channel"
    bk = bucket(rows, 16, 32 if fp32 else 64)
    bn = bucket(columns, 64 if (fp32 or channel) and bk == 32 else 16, 32 if fp32 and bk == 16 else 64)
    warps = 8 if (fp32 or channel) and bk * bn >= 2048 else 4
    sizes = {"C": chunk, "BK": bk, "BN": bn, "num_warps": warps, "num_stages": 1 if fp32 else 2}
    # the assembler would aim at 128 registers and spill a few
    return sizes | ({"maxnreg": 168} if fp32 and channel and warps == 8 else {})


def kind(decay: torch.Tensor | None) -> str:
    return "none" if decay is None else "scalar" if decay.dim() == 3 else "channel"


def strides(*tensors: torch.Tensor | None) -> list[int]:
    """Of batch, head and token."""
    return [n for t in tensors for n in ((0, 0, 0) if t is None else t.stride()[:3])]


def sum_gradient(dy: torch.Tensor, y: torch.Tensor, normalize: bool) -> torch.Tensor:
    """delta = -dy.y (B, H, T), in fp32; empty without normalisation."""
    batch, heads, length, width = y.shape
    delta = y.new_empty((batch, heads, length) if normalize else 0, dtype=torch.float32)
    if normalize:
        programs = grid(batch * heads, triton.cdiv(length, 32))
        delta_kernel[programs](dy, y, delta, heads, length, width, *strides(dy, y), BT=32, BN=bucket(width, 16, 64))
    return delta


def scan(b, c, decay, inverse, delta, first, last, normalize: bool, reverse: bool):
    """Launch: the states that the chunks find and the vectors beside them; None where each starts from nothing."""
    batch, heads, length, rows = b.shape
    columns = c.shape[3]
    sizes = blocks(rows, columns, length, kind(decay), b.dtype == torch.float32)
    chunks = triton.cdiv(length, sizes["C"])
    if chunks == 1 and first is None and last is None:
        return None
    states = b.new_empty(batch, heads, chunks, rows, columns, dtype=torch.float32)
    beside = b.new_empty((batch, heads, chunks, rows) if normalize else 0, dtype=torch.float32)
    states_kernel[(batch * heads, triton.cdiv(rows, sizes["BK"]), triton.cdiv(columns, sizes["BN"]))](
        b, c, states if decay is None else decay, inverse, delta, first, last, states, beside,
        heads, length, rows, columns, *strides(b, c, decay),
        REVERSE=reverse, NORMALIZE=normalize, DECAY=kind(decay), FIRST=first is not None, LAST=last is not None,
        PRECISION=precision(b.dtype), **sizes,
    )  # fmt: skip
    return states, beside


def add_up(role, a, b, c, own, out, decay, inverse, delta, found, normalize: bool, eps: float = 0.0):
    """Launch. Returns, for dq and dk under decay, the product of `own` with the gradient, fp32, shaped as the decay."""
    batch, heads, length, rows = a.shape
    columns = c.shape[3]
    sizes = blocks(rows, columns, length, kind(decay), a.dtype == torch.float32)
    r = 16 if kind(decay) == "channel" else sizes["C"]
    programs = grid(batch * heads, triton.cdiv(length, r), triton.cdiv(columns, sizes["BN"]))
    slope = None
    if role in ("dq", "dk") and decay is not None:
        slope = (batch, heads, length, columns) if decay.dim() == 4 else (programs[2], batch, heads, length)
        slope = a.new_empty(slope, dtype=torch.float32)
    states, beside = found or (out, out)
    product = precision(a.dtype)
    sum_kernel[programs](
        a, b, c, own, out, out if decay is None else decay, inverse, delta, states, beside, slope, eps,
        heads, length, rows, columns, batch * heads, *strides(a, b, c, own, out, decay),
        ROLE=role, NORMALIZE=normalize, DECAY=kind(decay), STATES=found is not None,
        PRECISION=product, CARRIED="tf32" if product == "ieee" else product, R=r, **sizes,
    )  # fmt: skip
    return slope.sum(0) if kind(decay) == "scalar" and slope is not None else slope
