"""Anonymous memory files, shared with other processes by their descriptors."""

from __future__ import annotations

import os
import tempfile


def create_memory_file(name: str, size: int) -> int:
    """Creates a file in RAM if possible, otherwise an unlinked temporary file.

    Args:
        name: for people who look at the process; need not be unique.
        size: in bytes; pages are allocated when they are written.

    Returns:
        Its descriptor.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
