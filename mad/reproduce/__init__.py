"""Published tables and figures beside our own runs.

comparison = compare("based_figure2", leaderboard.read(["results/reproduce_based_figure2"]))
comparison.rows                 # ours, published, difference, what stands behind it
draw(comparison)                # mad.reproduce.figures: the published figure, with both

Reads tables alone: any CSV with the right columns will do, whoever wrote it. `anchors/` has what was published.
"""

from mad.reproduce.compare import Comparison, compare
from mad.reproduce.published import PUBLISHED, Published, read

__all__ = ["PUBLISHED", "Comparison", "Published", "compare", "read"]
