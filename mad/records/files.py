"""Files written in one piece, and JSON that holds every float.

JSON has no NaN: a float that is not finite is written as the string "NaN", "Infinity" or "-Infinity" and read back as
the float, as the JSON form of protocol buffers does it.
"""

import contextlib
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def replace(path: Path, content: str | bytes | memoryview) -> None:
    """Write `content` to `path` in one piece: a reader sees the old content or the new.

    The temporary name is random: process numbers of two machines that share a folder may be equal.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # an error may have quoted half a character, as a file name that is no text
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def save(path: str | Path, content: str) -> None:
    """`replace` of a file that somebody named: of what a link leads to. A device, as /dev/stdout, is written into."""
    path = Path(path)
    if path.exists() and (not path.is_file() or path.is_relative_to("/dev")):
        path.write_text(content, encoding="utf-8")
    else:
        replace(path.resolve(), content)


def dumps(value: Any) -> str:
    """Standard JSON, also of floats that are not finite."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_name_non_finite(value), allow_nan=False)


def loads(text: str) -> Any:
    """What `dumps` wrote."""
    value = json.loads(text)
    return _restore_non_finite(value) if any(f'"{name}"' in text for name in NON_FINITE) else value


def _name_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _name_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_name_non_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _restore_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restore_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore_non_finite(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
