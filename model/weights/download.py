"""The partial file of a download that may take several attempts (torch-free).

Used by `model.weights.releases`: bytes are written to `NAME.part`, and the version of the original
(its ETag or date) to a second file; only a complete file gets its own name. A lock keeps two
processes from writing the same part.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from model.weights.header import CheckpointError


class DownloadError(CheckpointError):
    """A release file that cannot be downloaded; the message says what to do next."""


class PartialFile:
    """A partial file and the version of the original that it is from."""

    def __init__(self, path: Path, file: FileIO) -> None:
        """Uses the open file and its path."""
        self.path, self._file = path, file
        self._validator_file = path.with_name(f"{path.name}.validator")

    @property
    def size(self) -> int:
        """Bytes received."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def validator(self) -> str | None:
        """The ETag or date of the version that the bytes are from; None if none is usable."""
        if not self._validator_file.is_file():
            return None
        text = self._validator_file.read_text(errors="replace")
        return text if text.isascii() and text.isprintable() else None

    def restart(self, validator: str | None) -> None:
        """Deletes all bytes and writes the version that the next ones are from."""
        self._file.truncate(0)
        self._validator_file.unlink(missing_ok=True)
        if validator:
            self._validator_file.write_text(validator, errors="replace")

    def append(self, piece: bytes) -> None:
        """Adds bytes at the end."""
        rest = memoryview(piece)
        while rest:  # a write may be partial when the disk fills up
            rest = rest[self._file.write(rest) :]

    def rewound(self) -> FileIO:
        """Returns the file, positioned at its first byte."""
        self._file.seek(0)
        return self._file

    def finish(self, target: Path) -> None:
        """Renames the complete file to its target."""
        os.fsync(self._file.fileno())
        self.path.replace(target)
        self._validator_file.unlink(missing_ok=True)

    def discard(self) -> None:
        """Deletes the bytes, as they are wrong."""
        self.path.unlink(missing_ok=True)
        self._validator_file.unlink(missing_ok=True)


@contextmanager
def locked_part(target: Path) -> Iterator[PartialFile]:
    """Opens the part file of a target and locks it for this process.

    Raises:
        DownloadError: if it cannot be written, or another process has it.
    """
    path = target.with_name(f"{target.name}.part")
    with disk_errors(path):
        file = path.open("ab+", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(path, "another process is downloading this file") from error
        with disk_errors(path):
            renamed = not path.exists() or not os.path.samestat(
                os.fstat(file.fileno()), path.stat()
            )
        if renamed:  # between opening and locking, another process made it the target
            raise DownloadError(path, "another process has just downloaded this file")
        yield PartialFile(path, file)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Re-raises OSError as DownloadError with the file's name."""
    try:
        yield
    except OSError as error:
        raise DownloadError(path, f"cannot be written: {error.strerror or error}") from error
