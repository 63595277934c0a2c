"""How the C library's allocator treats memory that was freed: the edge asks it to keep some.

Decoding frees a few buffers of a megabyte for every image. By default glibc gives them back to the
kernel at once and gets them again, page by page and each page cleared, for the next image: where
that was measured it cost a third of the CPU time of an answer (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD = -1  # <malloc.h>
_M_MMAP_THRESHOLD = -3
_MIB = 1024 * 1024
# Kept at the end of each heap; a block above the second is the kernel's again when it is freed,
# so that a large array leaves nothing behind.
_TRIM_BYTES = 64 * _MIB
_MMAP_BYTES = 32 * _MIB


def keep_freed_memory() -> bool:
    """Makes freed blocks of usual images stay in the process, ready for the next image.

    An operator's own choice (glibc's `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`) wins.

    Returns:
        Whether the C library understood; others than glibc need no such advice, or take none.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES) and mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    return bool(kept)


def release_freed_memory() -> None:
    """Hands every freed page of this process to the kernel; takes some 0.1 ms a freed MiB.

    Pillow takes the memory of a large image in blocks of a MiB, too small for glibc to give back
    one by one, and a single block in use at the end of a heap keeps all that lies before it.
    """
    with contextlib.suppress(AttributeError, OSError):  # a C library that has no such call
        ctypes.CDLL(None).malloc_trim(0)
