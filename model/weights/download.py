"""A file that arrives in pieces, perhaps over several attempts (torch-free).

The storage under `model.weights.releases`: bytes gather in `NAME.part`, with a note beside it of
which version of the original they are from; only a whole file gets its own name. A lock keeps
two processes from writing one part.
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
    """A release file that could not be brought here; the message says what to do next."""


class PartialFile:
    """The growing file and the note of which version of the original it holds."""

    def __init__(self, path: Path, file: FileIO) -> None:
        """Takes the open part file and its path."""
        self.path, self._file = path, file
        self._note = path.with_name(f"{path.name}.validator")

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def validator(self) -> str | None:
        """The ETag or date of the version that the bytes are from; None where none is usable."""
        if not self._note.is_file():
            return None
        text = self._note.read_text(errors="replace")
        return text if text.isascii() and text.isprintable() else None

    def restart(self, validator: str | None) -> None:
        """Drops all bytes, and notes the version that the next ones are from."""
        self._file.truncate(0)
        self._note.unlink(missing_ok=True)
        if validator:
            self._note.write_text(validator, errors="replace")

    def append(self, piece: bytes) -> None:
        """Adds bytes at the end."""
        rest = memoryview(piece)
        while rest:  # a disk that fills up takes a part first and refuses then
            rest = rest[self._file.write(rest) :]

    def rewound(self) -> FileIO:
        """The file, from its first byte on."""
        self._file.seek(0)
        return self._file

    def finish(self, target: Path) -> None:
        """Makes the whole file appear under its own name."""
        os.fsync(self._file.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the bytes: they are wrong."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


@contextmanager
def locked_part(target: Path) -> Iterator[PartialFile]:
    """Opens the part file of a target for this process alone.

    Raises:
        DownloadError: where the disk refuses, or another process has it.
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
    """Turns a disk's refusal into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise DownloadError(path, f"cannot be written: {error.strerror or error}") from error
