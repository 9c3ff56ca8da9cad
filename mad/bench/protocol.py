"""What a score card of the MAD protocol costs: predicted from measured rates, and with --run really trained.

The prediction is the number of steps of every run (66 settings, 6 optimiser points) times the rate measured at its
shape with several lanes: its length, and how many tokens are scored. A run evaluates 200 times whatever its size, which
counts as a third of a step a batch. No run is taken to stop early; a score card that is run is shorter by what early
stopping saves. Vocabularies are the first setting's of a shape.
"""

import argparse
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from mad import tasks, training
from mad.bench.lanes import chosen, measure
from mad.training import data
from mad.training.prepare import build_task

GRID = 6  # optimiser points of a setting
EVALUATION = 1 / 3  # of a step: forward alone


@dataclass
class Work:
    """The runs of one shape: a setting that has it, their steps, and batches that are evaluated."""

    task: dict[str, Any]
    scored: int | None  # tokens; None: all
    runs: int = 0
    steps: int = 0
    evaluated: int = 0
    tokens: int = 0  # that are trained on


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench protocol", description=__doc__)
    parser.add_argument("arch", help="arch=NAME of conf/arch")
    parser.add_argument("--lanes", type=int, default=4, help="runs at once (4)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring, at each shape (3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--run", action="store_true", help="train it, too, into results/mad (resumes what is there)")
    args = parser.parse_args(argv)
    if args.lanes < 1 or args.seconds <= 0:
        parser.error("--lanes must be at least 1 and --seconds above 0")
    if "," in args.arch:
        parser.error(f"expected one architecture, got {args.arch}")
    (arch,) = chosen(args.arch, ())
    mode = "compiled" if args.device == "cuda" else "eager"
    console, total, works = Console(highlight=False), 0.0, score_card()
    for work in works:
        length = work.task["seq_len"]
        try:
            rate = measure(arch, work.task, mode, args.lanes, args.seconds, args.device)
        except MemoryError as error:
            sys.exit(f"{args.lanes} lanes of {length} tokens {error}; fewer may: --lanes")
        alone = rate.step_ms / (1 + EVALUATION * rate.evaluated)
        hours = (work.steps + EVALUATION * work.evaluated) * alone / 3.6e6
        total += hours
        scored = "all" if work.scored is None else str(work.scored)
        console.print(
            f"T {length:<5} {scored:>3} scored ({work.task['name']}) {work.runs:4} runs {work.steps:8} steps "
            f"{rate.step_ms:8.3f} ms a step, {rate.tokens / 1e6:6.2f} M tokens/s: {hours:.2f} h",
            soft_wrap=True,
        )
    runs, tokens = sum(work.runs for work in works), sum(work.tokens for work in works)
    console.print(f"{arch['name']}: {runs} runs, {tokens:.2e} tokens, {total:.2f} h without early stopping")
    if args.run:
        began = time.perf_counter()
        given = ["sweeps=mad", f"arch={arch['name']}", f"engine.lanes={args.lanes}", f"device={args.device}"]
        done = subprocess.run([sys.executable, "-m", "mad.sweep", *given])
        hours = (time.perf_counter() - began) / 3600
        console.print(f"trained for {hours:.2f} h; runs that were there already, and their time, are not counted")
        sys.exit(done.returncode)


def score_card() -> list[Work]:
    """The whole protocol, the longest sequences first."""
    works: dict[tuple, Work] = {}
    for name, options in tasks.settings("mad"):
        task = {"name": name, **options}
        num_train = task.pop("num_train")
        run = training.prepare({"task": task, "arch": {"stack": "mlp", "dim": 1}, "device": "cpu"})
        built, train = build_task(run), run.train
        examples = data.compact(*built.sample(64, seed=0, split="train"))
        scored = None if examples.positions is None else examples.positions.shape[1]
        work = works.setdefault((built.head, task["seq_len"], scored), Work(task, scored))
        steps = GRID * train.epochs * math.ceil(num_train / train.batch_size)
        work.runs += GRID
        work.steps += steps
        work.evaluated += GRID * train.epochs * math.ceil((train.num_test or 0) / train.batch_size)
        work.tokens += steps * train.batch_size * built.input_length
    return sorted(works.values(), key=lambda work: -work.task["seq_len"])
