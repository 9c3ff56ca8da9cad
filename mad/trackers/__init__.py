"""Who else is told about a sweep. The store is the truth; a tracker replays it, and may fail without loss.

trackers.build("wandb").publish(store.records(), sweep="quickstart", folder=store.folder)
trackers.publish_folder("wandb", "results/quickstart")
"""

from mad.trackers import none, trackio, wandb
from mad.trackers.base import Tracker, build, names, registry
from mad.trackers.folder import publish_folder

__all__ = ["Tracker", "build", "names", "none", "publish_folder", "registry", "trackio", "wandb"]
