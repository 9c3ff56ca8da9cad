"""mad: mechanistic architecture design. Is this stack of layers any good, and will it stay good at scale?"""

__version__ = "0.1.0"
