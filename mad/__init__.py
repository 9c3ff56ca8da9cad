"""mad: mechanistic architecture design. Is this stack of layers any good, and will it stay good at scale?"""

from pathlib import Path

__version__ = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent  # a wheel holds conf/ and sweeps/, a checkout too
