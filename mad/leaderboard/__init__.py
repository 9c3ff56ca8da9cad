"""Which stack is best? Tables of runs in, one row per architecture out.

board = build(read(["results/quickstart"]))
show(board)

Reads tables alone: any CSV with the right columns will do, whoever wrote it. The HTML page also shows what stands
behind a row, from a sweep's records:

table, records = load(["results/quickstart"])
write_html(build(table), "board.html", details(table, records))
"""

from mad.leaderboard.anchors import match, read_anchors
from mad.leaderboard.build import build, check_tasks, scored
from mad.leaderboard.details import details
from mad.leaderboard.files import check_file, check_kept
from mad.leaderboard.html import write_html
from mad.leaderboard.read import load, read
from mad.leaderboard.render import markdown, show, write_csv, write_markdown

__all__ = [
    "build", "check_file", "check_kept", "check_tasks", "details", "load", "markdown", "match", "read", "read_anchors",
    "scored", "show", "write_csv", "write_html", "write_markdown",
]  # fmt: skip
