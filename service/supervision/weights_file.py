"""The weights file of a served model, held open while the model serves.

An engine that is restarted hours later loads the same file, even if it was replaced by rename in
the meantime for the next load.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


class OpenWeightsFile:
    """An open weights file: engines load it even after it was deleted or replaced."""

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

    @property
    def engine_path(self) -> str:
        """The path by which an engine that inherits `fd` opens the file."""
        return self.path if self.fd is None else f"/proc/self/fd/{self.fd}"

    def close(self) -> None:
        """Closes the file."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
