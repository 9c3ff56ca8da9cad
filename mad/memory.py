"""Memory that is kept: what array code on a CPU wants of the allocator."""

import ctypes
import functools
import platform


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
