"""How fast runs train, in each way of running them: eager, captured, compiled, and several at once.

Tasks of the MAD protocol with its model and batch, all included: data, optimiser, evaluation after every epoch, which
is 100 steps, and in memorization two. They differ: in recall every token trains, in selective copying few are scored,
compression has a decoder. A rate is the steps of all lanes from one moment, when all have been evaluated three times,
to another, --seconds later, between two evaluations in proportion. FLOPs are the model's own (forward, and twice that
backward); bytes the least that a step must move: weights, gradients and moments once, the residual stream five times a
layer. Both are also given as a share of what a large matrix product and a large copy reach on this device. `host` is
the share of that time for which the thread that queues all lanes had a CPU core, on a CPU to compute, too. `warm after`
is when each run had been evaluated twice: data, compilation, capture, 200 steps.
"""

import argparse
import itertools
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
import yaml
from rich.console import Console
from rich.table import Table

from mad import ROOT, tasks, training
from mad.config import Run
from mad.records import save
from mad.registry import unknown
from mad.training.prepare import build_task, cost

MODES = ("eager", "captured", "compiled")
LENGTHS = (32, 128, 1024)
BASELINES = dict(reversed(tasks.settings("mad")))  # the first setting of each task
TASK = "in_context_recall"
LANES = (1, 2, 4, 8, 16)
WARM = 2  # evaluations of a run before it counts


@dataclass(frozen=True)
class Rate:
    """Of all lanes together; seconds until each run was evaluated twice, GB of the device's memory."""

    step_ms: float
    tokens: float  # a second
    flops: float  # a second
    bytes: float  # a second
    warm_up: float
    memory: float
    evaluated: float  # batches, a step
    host: float  # CPU seconds of the thread that queues all lanes, a second


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench lanes", description=__doc__)
    parser.add_argument("arch", nargs="?", help="arch=NAME[,NAME...] of conf/arch (attention and hyena)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens (32 128 1024)")
    parser.add_argument("--tasks", nargs="+", choices=BASELINES, default=[TASK], metavar="TASK", help=f"({TASK})")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="(all)")
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES, help="of captured and compiled (1 2 4 8 16)")
    parser.add_argument("--seconds", type=float, default=3.0, help="timed, each (3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", metavar="FILE", help="write the numbers there, too")
    args = parser.parse_args(argv)
    if min(args.lanes) < 1 or min(args.lengths) < 4 or args.seconds <= 0:
        parser.error("--lanes must be at least 1, --lengths at least 4 (two pairs to recall), --seconds above 0")
    archs = chosen(args.arch, ("attention", "hyena"))
    asked = [baseline(parser, name, length) for name in args.tasks for length in args.lengths]
    console, rows = Console(highlight=False), []
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    product, copy = peaks(args.device)
    console.print(f"{name}: a large product {product / 1e12:.2f} TFLOP/s, a large copy {copy / 1e12:.2f} TB/s")
    modes = args.modes if args.device == "cuda" else ["eager"]
    for arch, task, mode in itertools.product(archs, asked, modes):
        for lanes in [1] if mode == "eager" else args.lanes:
            what = f"{arch['name']:26} {task['name']:23} T {task['seq_len']:<5} {mode:9} {lanes:2} lanes"
            try:
                rate = measure(arch, task, mode, lanes, args.seconds, args.device)
            except MemoryError as error:
                console.print(f"{what} {error}", soft_wrap=True)
                break
            shown = f"{rate.step_ms:8.3f} ms a step, {rate.tokens / 1e6:6.2f} M tokens/s"
            share = f"{rate.flops / product:5.1%} of the product, {rate.bytes / copy:5.1%} of the copy"
            setup = f"host {rate.host:.0%}, warm after {rate.warm_up:.1f} s, {rate.memory:.1f} GB"
            console.print(f"{what} {shown}, {share}, {setup}", soft_wrap=True)
            row = {"arch": arch["name"], "task": task["name"], "length": task["seq_len"], "mode": mode, "lanes": lanes}
            rows.append(row | vars(rate) | {"device": name, "torch": torch.__version__})
            if args.csv:  # after each: a session may end
                write(Path(args.csv), rows)
    console.print(summary(rows))


def baseline(parser: argparse.ArgumentParser, name: str, length: int) -> dict[str, Any]:
    """The MAD protocol's first setting of a task, at another length."""
    options = {key: value for key, value in BASELINES[name].items() if key != "num_train"} | {"seq_len": length}
    try:
        tasks.build(name, **options)
    except ValueError as error:
        parser.error(f"--tasks {name} --lengths {length}: {error}")
    return {"name": name, **options}


def measure(arch: dict[str, Any], task: dict[str, Any], mode: str, lanes: int, seconds: float, device: str) -> Rate:
    """The rate of `lanes` runs of `arch` (keys of conf/arch) at once, on `task` (its name and options).

    Raises:
        MemoryError: they do not fit into the device's memory.
    """
    few = mode == "eager"  # shorter epochs: ten evaluations a second or one make no difference to an eager loop
    sizes = {"num_train": 1280, "num_test": 128} if few else {}
    if device == "cpu":
        sizes, lanes = {"num_train": 512, "num_test": 128}, 1
    run = new_run(arch, task, mode, device, **sizes)
    runs = [replace(run, seed=seed) for seed in range(lanes)]
    times: dict[int, list[tuple[float, int]]] = {seed: [] for seed in range(lanes)}

    def on_progress(run: Run, progress: dict[str, Any]) -> None:
        if "accuracy" in progress:
            times[run.seed].append((time.perf_counter(), progress["step"]))

    warm: list[tuple[float, float]] = []  # the time at which all runs were, and what this thread had worked

    def on_turn(run: Run) -> None:
        if not warm and all(len(seen) > WARM for seen in times.values()):
            warm.append((time.perf_counter(), time.thread_time()))
        if warm and all(seen[-1][0] > warm[0][0] + seconds for seen in times.values()):
            raise Enough

    def on_begin(run: Run, begun: bool) -> None:
        if not begun:  # put back until others end, which none does
            raise MemoryError("do not fit into memory")

    if device == "cuda":
        torch.cuda.empty_cache()  # of the last measurement
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        for ended in training.interleave(iter(runs), lanes, on_progress, on_turn=on_turn, on_begin=on_begin):
            raise ended.error or RuntimeError("a run came to its end")
    except Enough:
        pass
    first, worked = warm[0]
    host = (time.thread_time() - worked) / (time.perf_counter() - first)
    steps = sum(steps_at(seen, first + seconds) - steps_at(seen, first) for seen in times.values()) / seconds
    ready = max(seen[1][0] for seen in times.values()) - began
    built = build_task(run)
    model, batch, layers = cost(run, built), run.train.batch_size, len(run.arch.stack)
    moved = 32 * model.params + 5 * 4 * layers * batch * built.input_length * run.arch.dim
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    tokens = steps * batch * built.input_length
    test, train = (math.ceil((number or 0) / batch) for number in (run.train.num_test, run.train.num_train))
    return Rate(1000 / steps, tokens, 3 * steps * batch * model.flops, steps * moved, ready, memory, test / train, host)


def new_run(arch: dict[str, Any], task: dict[str, Any], mode: str, device: str, **train: int) -> Run:
    """A run of `arch` that does not end by itself."""
    return training.prepare(
        {
            "task": task,
            "arch": arch,
            "train": {"epochs": 100_000, "stop_at": None} | train,
            "device": device,
            "mode": mode,
        }
    )


def steps_at(evaluations: list[tuple[float, int]], moment: float) -> float:
    """How far a run had come, between two of its evaluations (time, step) in proportion.

    All lanes are asked for the same two moments: from one evaluation to another of each, waiting before the first and
    after the last would not count, and lanes that take turns would look as if they ran side by side.
    """
    moments, steps = zip(*evaluations, strict=True)
    return float(numpy.interp(moment, moments, steps))


class Enough(Exception):
    """The time is over."""


def peaks(device: str) -> tuple[float, float]:
    """FLOP/s of a large product (bf16 on CUDA, fp32 on a CPU) and bytes/s, read and written, of a large copy."""
    gpu = device == "cuda"
    size = 8192 if gpu else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    b = torch.empty(2**28 if gpu else 2**24, device=device)
    c = torch.empty_like(b)
    return 2 * size**3 / _seconds(lambda: a @ a, gpu), 2 * b.nbytes / _seconds(lambda: c.copy_(b), gpu)


def _seconds(work: Any, gpu: bool) -> float:
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def chosen(given: str | None, default: tuple[str, ...]) -> list[dict[str, Any]]:
    """The architectures of `arch=NAME,NAME`, as conf/arch has them."""
    folder = ROOT / "conf" / "arch"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    names = given.removeprefix("arch=").split(",") if given else list(default)
    for name in names:
        if name not in known:
            print(f"mad.bench: {unknown('arch', name, known)}", file=sys.stderr)
            sys.exit(2)
    return [yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in names]


def summary(rows: list[dict[str, Any]]) -> Table:
    """The best of each way, and how many times the eager loop it is."""
    table = Table("arch", "task", "T", "eager ms", "best ms", "mode", "lanes", "M tokens/s", "times eager")
    for (arch, task, length), group in itertools.groupby(rows, lambda row: (row["arch"], row["task"], row["length"])):
        found = list(group)
        eager = next((row["step_ms"] for row in found if row["mode"] == "eager"), None)
        best = min(found, key=lambda row: row["step_ms"])
        table.add_row(
            arch, task, str(length), f"{eager:.2f}" if eager else "", f"{best['step_ms']:.3f}", best["mode"],
            str(best["lanes"]), f"{best['tokens'] / 1e6:.2f}", f"{eager / best['step_ms']:.1f}" if eager else "",
        )  # fmt: skip
    return table


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, pandas.DataFrame(rows).to_csv(index=False))
