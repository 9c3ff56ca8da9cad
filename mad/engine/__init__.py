"""Where runs execute.

engine = build("local", workers=4)
for record in engine.run(runs): ...     # as they finish
execute(runs, store, engine)            # the same, into a store, without what is already there
"""

from mad.engine.base import Engine, Event, Unusable, build, elsewhere, names, registry
from mad.engine.execute import Summary, execute
from mad.engine.inline import Inline
from mad.engine.local import Local
from mad.engine.progress import Display, display
from mad.engine.ray import Ray
from mad.engine.slurm import Slurm

__all__ = [
    "Display",
    "Engine",
    "Event",
    "Inline",
    "Local",
    "Ray",
    "Slurm",
    "Summary",
    "Unusable",
    "build",
    "display",
    "elsewhere",
    "execute",
    "names",
    "registry",
]
