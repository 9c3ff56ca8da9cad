"""All records of a sweep in one file, `records.jsonl.gz`: what one commits, or carries from machine to machine.

Thousands of small JSON files are slow to copy and awkward in git. Of the packed file a line is a record; equal records
give equal bytes, so that a file that did not change is no change.
"""

import gzip
import io
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mad.records.files import dumps, loads, replace
from mad.records.record import DONE, SCHEMA, Record

PACKED = "records.jsonl.gz"


def write(path: Path, records: Iterable[Record]) -> None:
    """Write `records` to `path` in one piece, in their order."""
    content = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=content, mode="wb", mtime=0) as file:
        for record in records:
            file.write((dumps(vars(record)) + "\n").encode())
    replace(path, content.getvalue())


def read(path: Path) -> dict[str, str]:
    """Run id -> the record's JSON; empty where there is no file.

    Raises:
        ValueError: the file is damaged. Unlike one damaged record it is not set aside: it may hold a whole sweep.
    """
    found: dict[str, tuple[str, Any]] = {}  # with its status
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        for line in filter(str.strip, lines):
            given = loads(line)
            known = given.keys() <= Record.__dataclass_fields__.keys()
            if known and given.get("schema", SCHEMA) == SCHEMA:  # the store has its say about another mad's
                Record.from_dict(given)
            run_id, status = given["run_id"], given.get("status")
            if run_id not in found or status in DONE or found[run_id][1] not in DONE:  # of files put together
                found[run_id] = line, status
    except FileNotFoundError:
        return {}
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected a record a line, as `python -m "
            "mad.status FOLDER --pack` writes them; bring back a whole one, or move it away and train its runs again"
        ) from error
    return {run_id: line for run_id, (line, _) in found.items()}
