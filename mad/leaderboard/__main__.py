"""`python -m mad.leaderboard results/quickstart --html board.html`: rank the architectures of one or more sweeps."""

import argparse
import sys
from pathlib import Path

from mad import leaderboard

SUFFIXES = {"csv": (".csv",), "md": (".md", ".markdown"), "html": (".html", ".htm"), "png": (".png", ".pdf", ".svg")}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mad.leaderboard",
        description="Rank architectures: per task and in the mean, best of the optimiser grid, mean over the seeds.",
        epilog="A diverged run scores 0, a failed one nothing; rows without a rank lack results for some settings.",
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="a results folder, or a CSV file with one row a run")
    parser.add_argument(
        "--score", help="the column to rank by, the higher the better (default: what the runs were scored by)"
    )
    parser.add_argument("--csv", metavar="FILE", help="write the leaderboard as CSV too")
    parser.add_argument("--md", metavar="FILE", help="write the leaderboard as Markdown too")
    parser.add_argument("--html", metavar="FILE", help="write the leaderboard as a web page that needs no other file")
    parser.add_argument("--png", metavar="FILE", help="draw score against state size and FLOPs; also .pdf and .svg")
    parser.add_argument("--anchors", metavar="FILE", help="CSV of published scores, to be shown beside ours")
    parser.add_argument("--publish", metavar="TRACKER", help="replay the results folders: wandb or trackio")
    chosen = parser.parse_args(arguments)
    try:
        for name in SUFFIXES:
            if getattr(chosen, name):
                leaderboard.check_file(f"--{name}", getattr(chosen, name), SUFFIXES[name])
                read = [*chosen.tables, *([chosen.anchors] if chosen.anchors else [])]
                leaderboard.check_kept(f"--{name}", getattr(chosen, name), read)
        if chosen.publish:
            _check_publishing(chosen.publish, chosen.tables)
        published = leaderboard.read_anchors(chosen.anchors) if chosen.anchors else None
        table, records = leaderboard.load(chosen.tables)
        board = leaderboard.build(table, score=chosen.score)
        anchors = None if published is None else leaderboard.match(published, board, table)
        if chosen.png:  # first, as it may have nothing to draw
            from mad.leaderboard.figure import write_figure  # matplotlib takes its time

            write_figure(board, chosen.png, anchors)
        if chosen.csv:
            leaderboard.write_csv(board, chosen.csv)
        if chosen.md:
            leaderboard.write_markdown(board, chosen.md, anchors)
        if chosen.html:
            first = Path(chosen.tables[0]).resolve()
            title = "Leaderboard" if len(chosen.tables) > 1 else first.name if first.is_dir() else first.stem
            details = leaderboard.details(table, records, score=chosen.score)
            leaderboard.write_html(board, chosen.html, details, anchors, title)
        leaderboard.show(board, anchors=anchors)
        if chosen.publish:
            from mad.trackers import publish_folder  # here, because trackers show leaderboards

            return 0 if all([publish_folder(chosen.publish, folder) for folder in chosen.tables]) else 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check_publishing(tracker: str, tables: list[str]) -> None:
    """Whether that tracker is to be had, and given records to show: before there is anything to write.

    Raises:
        ValueError: an unknown tracker, or one not installed; a table that is no results folder.
    """
    from mad.trackers import build

    build(tracker)
    for table in tables:
        if not Path(table).is_dir():
            raise ValueError(f"--publish {tracker} {table}: a tracker is shown records; expected a results folder")


if __name__ == "__main__":
    sys.exit(main())
