"""Plugins: Python files of a user's own that register layers or tasks."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def load(paths: Iterable[str]) -> None:
    """Run each file once in this process; a file that changed runs again.

    Raises:
        ValueError: a file does not exist or does not run; the message names it and the cause.
    """
    for path in paths:
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"plugin {path!r} is not a file (looked in {Path.cwd()})")
        digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()[:12]
        name = f"mad_plugin_{file.stem}_{digest}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ValueError(f"plugin {path!r} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"plugin {path!r} failed to load: {type(error).__name__}: {error}") from error
