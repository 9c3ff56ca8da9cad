"""One run -> one record.

record = training.train({"task": "mqar", "arch": {"stack": ["base_conv", "attention"], "dim": 64}})
record.metrics["accuracy"]
for record in training.train_lanes(runs): ...     # on a GPU several at once, as they finish
"""

from mad.training.checkpoint import Checkpoints
from mad.training.lanes import Ended, how_many, interleave, train_lanes
from mad.training.loop import train
from mad.training.pace import Pace
from mad.training.prepare import prepare

__all__ = ["Checkpoints", "Ended", "Pace", "how_many", "interleave", "prepare", "train", "train_lanes"]
