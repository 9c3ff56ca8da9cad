"""What generating data costs: each generator setting of the protocols, its training and test sequences, on one core.

Seconds are the fastest of several runs, since neighbours on the machine only add to them. Peak memory (arrays in use at
once, those returned included) is taken in a run of its own, since watching it takes time. The last column is what the
published generators were measured to take on one core of a small CPU machine, times the sequences: not timed here.
"""

import argparse
import time
import tracemalloc
from typing import Any

from rich.console import Console
from rich.table import Table

from mad import tasks

# Beyond the MAD protocol: Zoology's lengths, BASED's longest, and recall in one more size that was measured.
MORE = [
    ("in_context_recall", {"vocab_size": 128, "seq_len": 1024}),
    ("mqar", {"vocab_size": 8192, "seq_len": 64, "num_kv": 4}),
    ("mqar", {"vocab_size": 8192, "seq_len": 128, "num_kv": 8}),
    ("mqar", {"vocab_size": 8192, "seq_len": 256, "num_kv": 16}),
    ("mqar", {"vocab_size": 8192, "seq_len": 512, "num_kv": 64}),
    ("mqar", {"vocab_size": 8192, "seq_len": 1024, "num_kv": 256}),
]

PUBLISHED_MS = [  # a sequence, with these options (and the baseline's)
    ("in_context_recall", {"vocab_size": 16, "seq_len": 128}, 1.20),
    ("in_context_recall", {"vocab_size": 128, "seq_len": 1024}, 9.69),
    ("fuzzy_in_context_recall", {"vocab_size": 16, "seq_len": 128}, 3.83),
    ("fuzzy_in_context_recall", {"vocab_size": 128, "seq_len": 128}, 2720),
    ("selective_copying", {"vocab_size": 16, "seq_len": 256, "tokens_to_copy": 16}, 0.10),
    ("memorization", {"vocab_size": 256}, 0.65),
    ("mqar", {"vocab_size": 8192, "seq_len": 64, "num_kv": 4}, 0.36),
    ("mqar", {"vocab_size": 8192, "seq_len": 1024, "num_kv": 256}, 0.88),
]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mad.bench data", description=__doc__)
    measured = dict.fromkeys(name for name, _ in generators())
    parser.add_argument("--task", action="append", choices=list(measured), help="this task only (may be repeated)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the fastest is shown (default 3)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    table = Table("task, and what differs from its baseline", title="one core")
    for title in ("sequences", "seconds", "peak MB", "published s"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in args.task or measured:
        table.add_section()
        for options in (options for other, options in generators() if other == name):
            table.add_row(*measure(name, options, args.repeats))
    Console().print(table)


def generators() -> list[tuple[str, dict[str, Any]]]:
    """The settings, each generator once: the number of training sequences is no option of a generator."""
    found = []
    for name, options in [*tasks.settings("mad"), *MORE]:
        setting = (name, {key: value for key, value in options.items() if key != "num_train"})
        if setting not in found:
            found.append(setting)
    return found


def measure(name: str, options: dict[str, Any], repeats: int) -> list[str]:
    """The row of a setting: all of the protocol's training and test sequences."""
    task = tasks.build(name, **options)
    task.sample(1)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        generate(task)
        seconds.append(time.perf_counter() - began)
    tracemalloc.start()
    generate(task)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    changes = [f"{key} {value}" for key, value in options.items() if value != tasks.options(name)[key]]
    sequences = task.num_train + task.num_test
    published = [ms for other, given, ms in PUBLISHED_MS if other == name and given.items() <= task.options.items()]
    return [
        f"  {', '.join(changes)}" if changes else name,
        f"{sequences:,}",
        f"{min(seconds):.3f}",
        f"{peak / 1e6:.0f}",
        f"{published[0] * sequences / 1000:,.1f}" if published else "",
    ]


def generate(task: tasks.Task) -> tuple[tasks.Examples, tasks.Examples]:
    """Training and test examples, both kept, as a run keeps them."""
    return task.sample(task.num_train, split="train"), task.sample(task.num_test, split="test")
