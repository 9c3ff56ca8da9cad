"""What one training step costs, layer by layer: forward, backward and update of a language model around it.

The last rows are Hyena's stack and the same stack with its convolutions written the usual way, a real FFT of length 2T
and a grouped conv1d, timed alternately in this process, so that their ratio means something on a busy machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import layers
from mad import models
from mad.config import Run
from mad.training import data, host
from mad.training.loop import Update

VOCAB = 16


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench step", description=__doc__)
    parser.add_argument("--layer", action="append", choices=layers.names(), help="this layer only (may be repeated)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=127, help="tokens per sequence (default 127: odd, as recall has)")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median is shown")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    size = f"batch {args.batch}, length {args.length}, dim {args.dim}"
    threads = ", one thread" if args.device == "cpu" else ""
    table = Table("stack", "ms / step", "GFLOP / step", "GFLOP/s", title=f"{size}, {args.device}{threads}")
    with host.repeatable(0, args.device):
        for name in args.layer or layers.names():
            step, flops = new_step([name], args)
            add(table, name, statistics.median(times([step], args)[0]), flops)
        if not args.layer:
            compare(table, args)
    Console().print(table)


def compare(table: Table, args: argparse.Namespace) -> None:
    """hyena-swiglu*2 against itself with the usual convolutions, step about."""
    ours, flops = new_step("hyena-swiglu*2", args)
    theirs, _ = new_step("hyena-swiglu*2", args)

    def usual() -> None:
        with usual_convolutions():
            theirs()

    fast, slow = (statistics.median(t) for t in times([ours, usual], args))
    table.add_section()
    add(table, "hyena-swiglu*2", fast, flops)
    add(table, "  with rfft of 2T and conv1d", slow, flops)
    table.add_row("  ratio", f"{slow / fast:.2f}", "", "")


def new_step(stack: str | list[str], args: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """One training step of a model around the stack, and its FLOPs: forward, and twice that backward."""
    model = models.build(stack, args.dim, VOCAB, args.length).to(args.device)
    tokens = torch.randint(0, VOCAB, (args.batch, args.length), device=args.device)
    batch = data.Examples(tokens, None, tokens)
    precision = "bf16" if args.device == "cuda" else "fp32"
    run = Run.of({"task": "none", "device": args.device, "train": {"precision": precision}})
    update = Update(run, model)
    return lambda: update(batch, 1e-3), 3 * args.batch * models.cost(model, args.length).flops


def times(steps: list[Callable[[], None]], args: argparse.Namespace) -> list[list[float]]:
    """Seconds of each of args.steps calls, the steps taking turns; the first turn does not count."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(args.steps + 1):
        for step, mine in zip(steps, seconds, strict=True):
            began = time.perf_counter()
            step()
            if args.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                mine.append(time.perf_counter() - began)
    return seconds


def add(table: Table, name: str, seconds: float, flops: int) -> None:
    table.add_row(name, f"{1000 * seconds:.1f}", f"{flops / 1e9:.2f}", f"{flops / 1e9 / seconds:.1f}")


@contextmanager
def usual_convolutions():
    """kernels.fft_conv and kernels.short_conv as they are commonly written."""
    with mock.patch("kernels.fft_conv", rfft_2t), mock.patch("kernels.short_conv", conv1d):
        yield


def rfft_2t(u, k, *, skip=None, pre_gate=None, post_gate=None):
    length = u.shape[-1]
    u = (u if pre_gate is None else u * pre_gate).float()
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(k[:, :length].float(), n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    y = y if skip is None else y + u * skip.unsqueeze(-1)
    return y if post_gate is None else y * post_gate


def conv1d(u, w, bias=None):
    multiplier = w.shape[0] // u.shape[1]
    u = u.repeat_interleave(multiplier, dim=1).contiguous()
    return F.conv1d(u, w.unsqueeze(1), bias, padding=w.shape[-1] - 1, groups=len(w))[..., : u.shape[-1]]
