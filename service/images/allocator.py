"""Tuning of glibc's malloc: freed memory is kept in the process for the next image.

Decoding frees a few buffers of about 1 MiB per image. By default glibc returns them to the kernel
at once and requests them again for the next image, which costs a page fault per page: a third of
the edge's CPU time per request, where it was measured (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD = -1  # <malloc.h>
_M_MMAP_THRESHOLD = -3
_MIB = 1024 * 1024
# Up to _TRIM_BYTES are kept at the end of each heap. A block above _MMAP_BYTES is returned to the
# kernel when it is freed.
_TRIM_BYTES = 64 * _MIB
_MMAP_BYTES = 32 * _MIB


def keep_freed_memory() -> bool:
    """Configures malloc to keep freed blocks of usual image sizes in the process.

    glibc's own variables (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`) take precedence.

    Returns:
        Whether the C library accepted the configuration; only glibc does.
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
    """Returns all freed pages of this process to the kernel; takes about 0.1 ms per freed MiB.

    Pillow allocates a large image in blocks of 1 MiB, which glibc does not return one by one, and
    one block in use at the end of a heap keeps everything before it.
    """
    with contextlib.suppress(AttributeError, OSError):  # the C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
