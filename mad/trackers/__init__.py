"""Who else is told about a sweep. The store is the truth; a tracker replays it, and may fail without loss.

trackers.build("wandb").publish(store.records(), sweep="quickstart", folder=store.folder)
"""

from mad.trackers import none, wandb
from mad.trackers.base import Tracker, build, names, registry

__all__ = ["Tracker", "build", "names", "none", "registry", "wandb"]
