"""Memory: what array code on a CPU wants of the allocator, and how its end shows."""

import ctypes
import functools
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager

NO_MEMORY = re.compile(
    r"[Oo]ut ?[Oo]f ?[Mm]emory|[Cc]an(not|'t) allocate memory|[Nn]ot enough memory|bad_alloc|MemoryError|ALLOC_FAILED"
)
ASKED = re.compile(r"allocate (\d+) bytes")


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks, for good, in this process.

    By default a block of megabytes goes back to the kernel and comes back zeroed, page by page, at every operation,
    which costs as much as the arithmetic does, in a training step and in a generator alike.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, a GPU's too."""
    return isinstance(error, MemoryError) or NO_MEMORY.search(f"{type(error).__name__}: {error}") is not None


@contextmanager
def enough_for(what: str) -> Iterator[None]:
    """Inside, tensors of more bytes than there are, or than can be counted, are a ValueError that names `what`, a size
    that somebody asked for: the allocator names its own."""
    try:
        yield
    except (RuntimeError, MemoryError, TypeError) as error:
        if not out_of_memory(error) and "verflow" not in str(error):
            raise
        asked = ASKED.search(str(error))
        at_once = f" ({int(asked[1]) / 1e9:,.1f} GB at once)" if asked else ""
        raise ValueError(f"not enough memory for {what}{at_once}") from error
