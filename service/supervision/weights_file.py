"""The weights file of a served model, held open while the model serves.

An engine that is restarted hours later loads the same file, even if it was replaced by rename in
the meantime for the next load.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple


class FileIdentity(NamedTuple):
    """Tells whether a file was replaced or written to since it was looked at."""

    device: int
    inode: int
    size: int  # bytes
    modified_ns: int

    @classmethod
    def of(cls, file: Path | int) -> FileIdentity:
        """Returns the identity of a path or an open descriptor.

        Raises:
            OSError: if there is no such file.
        """
        status = os.stat(file)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class OpenWeightsFile:
    """An open weights file: engines load it even after it was deleted or replaced.

    Attributes:
        path: as text; empty if the device needs no file.
        fd: open descriptor; None if it needs none or the system cannot reopen it.
        identity: of the file when it was opened; None if the device needs no file.
    """

    def __init__(self, path: Path | None) -> None:
        """Opens the file.

        Args:
            path: of the weights; None if the device needs none.

        Raises:
            OSError: if it cannot be opened.
        """
        self.path = "" if path is None else str(path)
        self.fd: int | None = None
        # Only Linux reopens /proc/self/fd/N with a file position of its own.
        if path is not None and sys.platform == "linux":
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity: FileIdentity | None = None
        if path is not None:
            self.identity = FileIdentity.of(path if self.fd is None else self.fd)

    @property
    def engine_path(self) -> str:
        """The path by which an engine that inherits `fd` opens the file."""
        return self.path if self.fd is None else f"/proc/self/fd/{self.fd}"

    def close(self) -> None:
        """Closes the file."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
