"""Keeps freed memory in the process for the next image.

By default glibc returns every large block to the system at once, and the next image pays for fresh
pages, which the kernel must clear: up to a third of the CPU time of a forward pass was measured.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>
_TOP_PAD_BYTES = 64 << 20
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Configures the process's allocator; for processes that run a model on a CPU.

    Returns:
        False where the C library is not glibc; then nothing changes.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all([library.mallopt(option, value) == 1 for option, value in options])
