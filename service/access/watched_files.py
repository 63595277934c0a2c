"""Notices that files have changed, by their modification time, inode and size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_Signature = tuple[tuple[int, int, int] | None, ...]


class WatchedFiles:
    """A group of files that are read together, such as a certificate and its key."""

    def __init__(self, *paths: Path | None) -> None:
        """Notes the current state of the files.

        Args:
            *paths: the files; None is ignored. Symbolic links are followed, so that a link to a
                new file is a change.
        """
        self._paths = tuple(path for path in paths if path is not None)
        self._read = self._last_seen = _signature(self._paths)

    def note_read(self) -> None:
        """Notes the current state as the one that was read; call it before reading."""
        self._read = self._last_seen = _signature(self._paths)

    def changed(self) -> bool:
        """Whether the files differ from those that were read, and are the same as at the last call.

        The second condition keeps half-written files from being read.
        """
        found = _signature(self._paths)
        stable, self._last_seen = found == self._last_seen, found
        return stable and found != self._read


def _signature(paths: Iterable[Path]) -> _Signature:
    return tuple(_state(path) for path in paths)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:  # missing, for example while it is being replaced
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
