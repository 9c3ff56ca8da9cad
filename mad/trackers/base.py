"""What a tracker is: something that is shown the records of a sweep when it is over."""

from collections.abc import Sequence
from pathlib import Path

from mad.records import Record
from mad.registry import Registry

registry = Registry("tracker")
names, build = registry.names, registry.build


class Tracker:
    """Shown the records of a sweep after they are safe."""

    def publish(self, records: Sequence[Record], sweep: str, folder: str | Path) -> None:
        """Show `records`; what was shown before, unchanged, is not shown again.

        Never raises for trouble of the tracker's own (no network, no package): that is logged as a warning.

        Args:
            records: of the sweep, in any order.
            sweep: its name.
            folder: its results folder, where the tracker may keep files of its own.
        """
        raise NotImplementedError
