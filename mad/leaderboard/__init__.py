"""Which stack is best? Tables of runs in, one row per architecture out.

board = build(read(["results/quickstart"]))
show(board)

Reads tables alone: any CSV with the right columns will do, whoever wrote it.
"""

from mad.leaderboard.build import build
from mad.leaderboard.read import read
from mad.leaderboard.render import markdown, show, write_csv, write_markdown

__all__ = ["build", "markdown", "read", "show", "write_csv", "write_markdown"]
