"""Plugins: Python files of a user's own that register layers or tasks.

They are passed on as texts by path: a file may be edited while runs that were prepared with it wait their turn.
"""

import hashlib
import importlib.util
import linecache
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mad.registry import Registry

_loaded: dict[str, bytes] = {}  # module name -> the text that ran


def read(paths: Iterable[str]) -> dict[str, bytes]:
    """The text of each file. Raises ValueError where there is none; the message names it."""
    texts = {}
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"plugin {path!r} is not a file (looked in {Path.cwd()})")
        texts[path] = Path(path).read_bytes()
    return texts


def digests(texts: Mapping[str, bytes]) -> list[str]:
    """A hash of each text, sorted: what plugins contribute to a run's identity."""
    return sorted(map(_digest, texts.values()))


def versions(texts: Mapping[str, bytes]) -> dict[str, str]:
    """For a record: which text of which files it was, as {"plugins": "my_layer@1a2b3c4d"}."""
    named = [f"{Path(path).stem}@{_digest(text)[:8]}" for path, text in texts.items()]
    return {"plugins": " ".join(sorted(named))} if named else {}


def load(texts: Mapping[str, bytes]) -> None:
    """Run each text once in this process; another text of the same file runs again.

    Raises:
        ValueError: it does not run; the message names the file and the cause.
    """
    for path, text in texts.items():
        file = str(Path(path).resolve())
        name = f"mad_plugin_{Path(path).stem}_{hashlib.sha256(file.encode()).hexdigest()[:8]}"
        if _loaded.get(name) == text:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None:
            raise ValueError(f"plugin {path!r} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        for registry in Registry.all:
            registry.forget(name)
        try:
            lines = importlib.util.decode_source(text).splitlines(keepends=True)
            linecache.cache[file] = (len(text), None, lines, file)  # for tracebacks, and Triton's kernels
            exec(compile(text, file, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:  # the latter of a script that takes itself for the program
            del sys.modules[name]
            raise ValueError(f"plugin {path!r} failed to load: {type(error).__name__}: {error}") from error
        _loaded[name] = text


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
