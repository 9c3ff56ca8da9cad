"""`python -m mad.bench data | step`: what generating data and a training step cost on this machine."""

import sys

from mad.registry import unknown

USAGE = """usage: python -m mad.bench data | step [--help]

data    seconds and memory to generate each setting of the protocols
step    ms and GFLOP/s of a training step, for every layer"""


def main() -> None:
    name, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(USAGE)
    elif name == "data":
        from mad.bench import data

        data.main(rest)
    elif name == "step":
        from mad.bench import step

        step.main(rest)
    else:
        sys.exit(str(unknown("benchmark", name, ("data", "step"))))


if __name__ == "__main__":
    main()
