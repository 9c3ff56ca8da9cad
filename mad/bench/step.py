"""What one training step costs, layer by layer: forward, backward and update of a language model around it.

The last rows are Hyena's stack, and the same stack with its convolutions written the usual way, a real FFT of length 2T
and a grouped conv1d. These two take turns in this process, so that their ratio means something on a busy machine, and
both with the memory allocator as torch finds it; "as trained" is ours with freed memory kept, as runs have it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import layers
from mad import models
from mad.config import Run
from mad.memory import keep_freed_memory
from mad.training import data
from mad.training.graphs import Immediate
from mad.training.trainer import Update

VOCAB = 16
HYENA = "hyena-swiglu*2"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench step", description=__doc__)
    parser.add_argument("--layer", action="append", choices=layers.names(), help="this layer only (may be repeated)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=127, help="tokens per sequence (default 127: odd, as recall has)")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median is shown")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; training uses one a run (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    for name in ("batch", "length", "dim", "steps", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    torch.set_num_threads(args.threads)
    where = args.device if args.device == "cuda" else f"cpu, {args.threads} thread{'s' * (args.threads > 1)}"
    title = f"batch {args.batch}, length {args.length}, dim {args.dim}, {where}"
    table = Table("stack", "ms / step", "GFLOP / step", "GFLOP/s", title=title)
    slow = fast = 0.0
    if not args.layer:  # first, while the allocator is as it was
        ours, _ = new_step(HYENA, args)
        usual, _ = new_step(HYENA, args)
        fast, slow = (statistics.median(t) for t in times([ours, lambda: with_usual_convolutions(usual)], args))
    if args.device == "cpu":
        keep_freed_memory()
    for name in args.layer or layers.names():
        add(table, name, [name], args)
    if not args.layer:
        table.add_section()
        trained = add(table, f"{HYENA}, as trained", HYENA, args)
        for name, seconds in ((HYENA, fast), ("  with rfft of 2T and conv1d", slow)):
            table.add_row(name, f"{1000 * seconds:.1f}", "", "")
        table.add_row("  ratio, and to as trained", f"{slow / fast:.2f}, {slow / trained:.2f}", "", "")
    Console().print(table)


def new_step(stack: str | list[str], args: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """One training step of a model around the stack, and its FLOPs: forward, and twice that backward."""
    model = models.build(stack, args.dim, VOCAB, args.length).to(args.device)
    tokens = torch.randint(0, VOCAB, (args.batch, args.length), device=args.device)
    batch = data.Examples(tokens, None, tokens)
    precision = "bf16" if args.device == "cuda" else "fp32"
    run = Run.of({"task": "none", "device": args.device, "train": {"precision": precision, "batch_size": args.batch}})
    update = Update(run, model, [batch], Immediate())

    def step() -> None:
        update.stage([torch.arange(args.batch)], [1e-3])
        update(0)

    return step, 3 * args.batch * models.cost(model, args.length).flops


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


def add(table: Table, name: str, stack: str | list[str], args: argparse.Namespace) -> float:
    """A row for one stack; returns its seconds."""
    step, flops = new_step(stack, args)
    seconds = statistics.median(times([step], args)[0])
    table.add_row(name, f"{1000 * seconds:.1f}", f"{flops / 1e9:.2f}", f"{flops / 1e9 / seconds:.1f}")
    return seconds


def with_usual_convolutions(step: Callable[[], None]) -> None:
    """The step with its long and short convolutions as they are commonly written."""
    with mock.patch("kernels.fft_conv", rfft_2t), mock.patch("kernels.short_conv_streams", conv1d):
        step()


def rfft_2t(u, k, *, skip=None, pre_gate=None, post_gate=None):
    length = u.shape[-1]
    u = (u if pre_gate is None else u * pre_gate).float()
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(k[:, :length].float(), n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    y = y if skip is None else y + u * skip.unsqueeze(-1)
    return y if post_gate is None else y * post_gate


def conv1d(u, w, bias=None, *, streams, input_bias=None):
    if input_bias is not None:
        u = u + input_bias.to(u.dtype).unsqueeze(-1)
    u = u.repeat(1, w.shape[0] // u.shape[1], 1)
    y = F.conv1d(u, w.unsqueeze(1), bias, padding=w.shape[-1] - 1, groups=len(w))[..., : u.shape[-1]]
    return y.chunk(streams, dim=1)
