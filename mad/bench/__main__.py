"""`python -m mad.bench NAME`: what things cost on this machine."""

import importlib
import sys

from mad.registry import unknown

BENCHMARKS = {
    "data": "seconds and memory to generate each setting of the protocols",
    "step": "ms and GFLOP/s of a training step, for every layer",
    "profile": "where a step's time goes, kernel by kernel",
    "lanes": "steps and tokens a second of whole runs: eager, captured, compiled, several at once",
    "protocol": "hours of a MAD score card, predicted and trained",
    "scaling": "seconds to fit scaling laws",
    "engine": "ms a run that engine and store cost, and whether two processes do each run once",
}


def main() -> int:
    """Exit status 0, 2 for a benchmark that does not exist; each says its own."""
    name, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(f"usage: python -m mad.bench {' | '.join(BENCHMARKS)} [--help]\n")
        print("\n".join(f"{key:10}{what}" for key, what in BENCHMARKS.items()))
    elif name in BENCHMARKS:
        importlib.import_module(f"mad.bench.{name}").main(rest)
    else:
        print(f"mad.bench: {unknown('benchmark', name, BENCHMARKS)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
