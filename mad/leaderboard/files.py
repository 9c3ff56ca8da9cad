"""Files that a command is to write: what is wrong with one is said before any work."""

import os
from collections.abc import Sequence
from pathlib import Path

from mad.registry import nearest


def check_file(option: str, path: str | Path, known: Sequence[str]) -> None:
    """Whether the `path` of an option can be written, before there is anything to write; `known` are its suffixes.

    Raises:
        ValueError: another suffix than those, a folder that does not exist, or no permission.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # /dev/stdout
    if path.is_dir():
        raise ValueError(
            f"{option} {path}: it is a folder; expected a file, for instance {path / ('board' + known[0])}"
        )
    if path.suffix.lower() not in known:
        meant = nearest(path.suffix.lower(), known) or f" (did you mean {str(path.with_suffix(known[0]))!r}?)"
        raise ValueError(f"{option} {path}: unknown suffix {path.suffix!r}{meant}; expected one of: {', '.join(known)}")
    if not path.parent.is_dir():
        there = next(folder for folder in path.absolute().parents if folder.is_dir())
        raise ValueError(f"{option} {path}: there is no folder {str(path.parent)!r}; the nearest one is {str(there)!r}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{option} {path}: no permission to write there; choose a file in a folder of your own")


def check_kept(option: str, file: str | Path, tables: Sequence[str | Path]) -> None:
    """Whether `file` is none of the tables that are read: it would be replaced.

    Raises:
        ValueError: it is one, under whatever name, or the results.csv of one.
    """
    for table in tables:
        for path in (Path(table), Path(table, "results.csv")):
            same = Path(file).resolve() == path.resolve()
            if same or (path.is_file() and Path(file).is_file() and path.samefile(file)):
                raise ValueError(
                    f"{option} {file} would replace the table {table}, which is read; expected another file"
                )
