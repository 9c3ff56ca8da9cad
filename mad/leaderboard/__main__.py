"""`python -m mad.leaderboard results/quickstart`: rank the architectures of one or more sweeps."""

import argparse
import sys

from mad.leaderboard import build, read, show, write_csv, write_markdown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mad.leaderboard",
        description="Rank architectures: per task and in the mean, best of the optimiser grid, mean over the seeds.",
        epilog="A diverged run scores 0, a failed one nothing; rows without a rank lack results for some settings.",
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="a results folder, or a CSV file with one row a run")
    parser.add_argument("--score", help="the column to rank by (default: what the runs were scored by)")
    parser.add_argument("--csv", metavar="FILE", help="write the leaderboard as CSV too")
    parser.add_argument("--md", metavar="FILE", help="write the leaderboard as Markdown too")
    chosen = parser.parse_args(arguments)
    try:
        board = build(read(chosen.tables), score=chosen.score)
        show(board)
        if chosen.csv:
            write_csv(board, chosen.csv)
        if chosen.md:
            write_markdown(board, chosen.md)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
