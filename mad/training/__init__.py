"""One run -> one record.

record = training.train({"task": "mqar", "arch": {"stack": ["base_conv", "attention"], "dim": 64}})
record.metrics["accuracy"]
"""

from mad.training.checkpoint import Checkpoints
from mad.training.loop import train
from mad.training.prepare import prepare

__all__ = ["Checkpoints", "prepare", "train"]
