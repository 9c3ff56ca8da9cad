"""Nobody else is told."""

from collections.abc import Sequence
from pathlib import Path

from mad.records import Record
from mad.trackers.base import Tracker, registry


@registry.register("none")
class Silent(Tracker):
    """Tells nobody."""

    def publish(self, records: Sequence[Record], sweep: str, folder: str | Path) -> bool:
        return True

    def outline(self, records: Sequence[Record], sweep: str, folder: str | Path) -> str:
        return "nothing would be published: the tracker is none"
