"""What a score card of the MAD protocol costs: predicted from measured rates, and with --run really trained.

The prediction is the number of steps of every run (66 settings, 6 optimiser points) times the rate measured at its
length with several lanes, as if no run stopped early; a score card that is run is shorter by what early stopping saves.
Vocabularies are the baseline's, and evaluations 100 steps apart; the settings of few sequences have 2 to 7 in between.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mad import tasks, training
from mad.bench.lanes import chosen, measure
from mad.training.prepare import build_task

GRID = 6  # optimiser points of a setting


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench protocol", description=__doc__)
    parser.add_argument("arch", help="arch=NAME of conf/arch")
    parser.add_argument("--lanes", type=int, default=4, help="runs at once (4)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring, at each length (3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--run", action="store_true", help="train it, too, into results/mad (resumes what is there)")
    args = parser.parse_args(argv)
    if args.lanes < 1 or args.seconds <= 0:
        parser.error("--lanes must be at least 1 and --seconds above 0")
    if "," in args.arch:
        parser.error(f"expected one architecture, got {args.arch}")
    (arch,) = chosen(args.arch, ())
    steps, tokens = work()
    mode = "compiled" if args.device == "cuda" else "eager"
    table, total = Table("T", "steps", "ms a step", "M tokens/s", "hours"), 0.0
    for length in sorted(steps):
        try:
            rate = measure(arch, length, mode, args.lanes, args.seconds, args.device)
        except MemoryError as error:
            sys.exit(f"{args.lanes} lanes of {length} tokens {error}; fewer may: --lanes")
        hours = steps[length] * rate.step_ms / 3.6e6
        total += hours
        row = (length, steps[length], f"{rate.step_ms:.3f}", f"{rate.tokens / 1e6:.2f}", f"{hours:.2f}")
        table.add_row(*(str(cell) for cell in row))
    console = Console(highlight=False)
    console.print(table)
    runs = GRID * len(tasks.settings("mad"))
    console.print(f"{arch['name']}: {runs} runs, {tokens:.2e} tokens, {total:.2f} h without early stopping")
    if args.run:
        began = time.perf_counter()
        given = ["sweeps=mad", f"arch={arch['name']}", f"engine.lanes={args.lanes}", f"device={args.device}"]
        done = subprocess.run([sys.executable, "-m", "mad.sweep", *given])
        hours = (time.perf_counter() - began) / 3600
        console.print(f"trained for {hours:.2f} h; runs that were there already, and their time, are not counted")
        sys.exit(done.returncode)


def work() -> tuple[Counter[int], float]:
    """Steps of the whole protocol at each nominal length, and tokens in all."""
    steps: Counter[int] = Counter()
    tokens = 0.0
    for name, options in tasks.settings("mad"):
        options: dict[str, Any] = dict(options)
        num_train = options.pop("num_train")
        run = training.prepare({"task": {"name": name, **options}, "arch": {"stack": "mlp", "dim": 1}, "device": "cpu"})
        number = GRID * run.train.epochs * -(-num_train // run.train.batch_size)
        steps[options["seq_len"]] += number
        tokens += number * run.train.batch_size * build_task(run).input_length
    return steps, tokens
