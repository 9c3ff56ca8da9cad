"""Where a step's time goes: the kernels of a training step (on a CPU its operators), the dearest first.

A task of the MAD protocol with its model and batch, as in `lanes`: a step takes its batch from the data, goes
forward and backward and updates the weights; evaluations do not count. Kernels of compiled layers bear the names of the
operations that were fused into them. On a GPU the sum may exceed the time of a step, as kernels overlap.
"""

import argparse
import time
from collections import defaultdict

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity

from mad.bench.lanes import BASELINES, MODES, TASK, baseline, chosen, new_run
from mad.config import Run
from mad.training import data, host
from mad.training.graphs import Graphs
from mad.training.prepare import build_task
from mad.training.trainer import STAGED, Trainer

WARM = 3 * Graphs.together  # steps before any counts: compiled, captured, replayed


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench profile", description=__doc__)
    parser.add_argument("arch", nargs="?", help="arch=NAME[,NAME...] of conf/arch (hyena)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128], help="tokens (128)")
    parser.add_argument("--task", choices=BASELINES, default=TASK, metavar="TASK", help=f"({TASK})")
    parser.add_argument("--mode", choices=MODES, help="(compiled; on a CPU eager)")
    parser.add_argument("--steps", type=int, default=12, help="to average over (12: three graphs of four)")
    parser.add_argument("--top", type=int, default=25, help="rows (25)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.top < 1:
        parser.error("--steps and --top must be at least 1")
    mode = args.mode or ("compiled" if args.device == "cuda" else "eager")
    asked = [baseline(parser, args.task, length) for length in args.lengths]
    for arch in chosen(args.arch, ("hyena",)):
        for task in asked:
            run = new_run(arch, task, mode, args.device, num_train=1280, num_test=128)
            Console().print(table(run, *profile(run, args.steps), args.top))


def profile(run: Run, steps: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """Milliseconds of a step, and of each kernel by name its calls and microseconds a step."""
    task = build_task(run)
    place = host.own_place() if run.device == "cuda" else None
    with host.Scope(run.seed, run.device, run.train.deterministic, place):
        train, test = (
            data.load(task, number or 0, run.seed, split, run.device, run.arch.max_length or 0)
            for split, number in (("train", run.train.num_train), ("test", run.train.num_test))
        )
        trainer = Trainer(run, task, train, test)
        batches = data.Batches([len(part) for part in train], run.train.batch_size, run.seed)

        def go(number: int) -> float:
            began = time.perf_counter()
            for first in range(0, number, STAGED):
                parts, rows = zip(*(batches.next() for _ in range(min(STAGED, number - first))), strict=True)
                trainer.update.stage(rows, [1e-3] * len(rows))
                for part, together in trainer.update.pieces(parts):
                    trainer.update(part, together)
            if run.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - began

        go(WARM)
        seconds = go(steps)
        on_gpu = run.device == "cuda"
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
            go(steps)
    found: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in seen.events() or ():
        if (event.device_type.name == "CUDA") == on_gpu:
            found[event.name][0] += 1 / steps
            found[event.name][1] += (event.device_time_total if on_gpu else event.self_cpu_time_total) / steps
    return 1000 * seconds / steps, {name: (calls, us) for name, (calls, us) in found.items()}


def table(run: Run, ms: float, kernels: dict[str, tuple[float, float]], top: int) -> Table:
    total = sum(us for _, us in kernels.values())
    calls = sum(calls for calls, _ in kernels.values())
    title = (
        f"{run.arch.name}, {run.task['name']}, {run.arch.max_length} tokens, {run.mode}: {ms:.3f} ms a step; under the "
        f"profiler {calls:.0f} {'kernels' if run.device == 'cuda' else 'operators'}, {total / 1000:.3f} ms"
    )
    shown = Table("us a step", "share", "calls", "name", title=title)
    for name, row in sorted(kernels.items(), key=lambda item: -item[1][1])[:top]:
        shown.add_row(f"{row[1]:.1f}", f"{row[1] / total:.1%}", f"{row[0]:.1f}", _short(name))
    return shown


def _short(name: str, most: int = 90) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."
