"""What `lite-detr detect` is given: files, folders, patterns and `-`, in order."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class NoPhoto(Exception):
    """A name that leads to no bytes; the message says why."""


@dataclass(frozen=True)
class Photo:
    """One picture to detect in."""

    name: str  # as the answers call it
    missing: str | None = None  # why there is nothing to read

    def read(self) -> bytes:
        """The whole encoded file.

        Raises:
            NoPhoto: where it is not there or cannot be read.
        """
        if self.missing is not None:
            raise NoPhoto(self.missing)
        try:
            return sys.stdin.buffer.read() if self.name == STDIN else Path(self.name).read_bytes()
        except OSError as error:
            raise NoPhoto(f"{self.name}: {error.strerror or error}") from error


def find_photos(arguments: Sequence[str]) -> list[Photo]:
    """The pictures that arguments stand for.

    A folder stands for the image files in it and below, a pattern (`*`, `?`, `[...]`) for what it
    matches, both sorted by name. What leads to nothing stays in the list, to be told in its place.
    """
    return [photo for argument in arguments for photo in _expand(argument)]


def _expand(argument: str) -> list[Photo]:
    if argument == STDIN:
        return [Photo(STDIN)]
    path = Path(argument)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not inside:
            return [Photo(argument, f"{argument}: no image files in this folder")]
        return [Photo(str(file)) for file in inside]
    # A file of exactly this name comes first: brackets and stars are allowed in names.
    if not path.exists() and glob.has_magic(argument):
        matches = sorted(m for m in glob.glob(argument, recursive=True) if Path(m).is_file())
        if not matches:
            return [Photo(argument, f"{argument}: no file matches")]
        return [Photo(match) for match in matches]
    return [Photo(argument)]
