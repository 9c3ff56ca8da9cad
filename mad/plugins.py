"""Plugins: Python files of a user's own that register layers or tasks."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

_loaded: dict[str, str] = {}  # module name -> digest of the text that ran


def digests(paths: Iterable[str]) -> list[str]:
    """A hash of each file's text, sorted: what plugins contribute to a run's identity."""
    return sorted(hashlib.sha256(_file(path).read_bytes()).hexdigest() for path in paths)


def versions(paths: Iterable[str]) -> dict[str, str]:
    """For a record: which text of which files it was, as {"plugins": "my_layer@1a2b3c4d"}."""
    texts = [f"{_file(path).stem}@{digests([path])[0][:8]}" for path in paths]
    return {"plugins": " ".join(sorted(texts))} if texts else {}


def load(paths: Iterable[str]) -> None:
    """Run each file once in this process; a file that changed runs again.

    Raises:
        ValueError: a file does not exist or does not run; the message names it and the cause.
    """
    for path in paths:
        file = _file(path).resolve()
        name = f"mad_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        (digest,) = digests([path])
        if _loaded.get(name) == digest:
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
        _loaded[name] = digest


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"plugin {path!r} is not a file (looked in {Path.cwd()})")
    return Path(path)
