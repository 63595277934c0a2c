"""The image files that the arguments of `lite-detr detect` name: files, folders, patterns, `-`."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class UnreadableFile(Exception):
    """A file that does not exist or cannot be read; the message says why."""


@dataclass(frozen=True)
class ImageFile:
    """One file to detect in."""

    name: str  # in the output
    missing: str | None = None  # why there is nothing to read

    def read(self) -> bytes:
        """Returns the whole encoded file.

        Raises:
            UnreadableFile: if it does not exist or cannot be read.
        """
        if self.missing is not None:
            raise UnreadableFile(self.missing)
        try:
            return sys.stdin.buffer.read() if self.name == STDIN else Path(self.name).read_bytes()
        except OSError as error:
            raise UnreadableFile(f"{self.name}: {error.strerror or error}") from error


def find_images(arguments: Sequence[str]) -> list[ImageFile]:
    """Expands the arguments to image files, in their order.

    A folder expands to the image files in it and below, a pattern (`*`, `?`, `[...]`) to the
    files that match, both sorted by name. An argument without any file stays in the list as a
    `missing` one, so that its error is reported in its place.
    """
    return [file for argument in arguments for file in _expand(argument)]


def _expand(argument: str) -> list[ImageFile]:
    if argument == STDIN:
        return [ImageFile(STDIN)]
    path = Path(argument)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not inside:
            return [ImageFile(argument, f"{argument}: no image files in this folder")]
        return [ImageFile(str(file)) for file in inside]
    # A file of exactly this name comes first: brackets and stars are allowed in names.
    if not path.exists() and glob.has_magic(argument):
        matches = sorted(m for m in glob.glob(argument, recursive=True) if Path(m).is_file())
        if not matches:
            return [ImageFile(argument, f"{argument}: no file matches")]
        return [ImageFile(match) for match in matches]
    return [ImageFile(argument)]
