"""The image files that the arguments of `lite-detr detect` name: files, folders, patterns, `-`."""

from __future__ import annotations

import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from model.data.input_files import FileTooLarge, read_at_most, read_regular_file
from model.images.formats import IMAGE_SUFFIXES
from model.images.limits import ImageLimits, check_byte_count

STDIN = "-"


class UnreadableFile(Exception):
    """A file that does not exist or cannot be read; the message says why, without its name."""


@dataclass(frozen=True)
class ImageFile:
    """One file to detect in."""

    name: str  # in the output
    missing: str | None = None  # why there is nothing to read

    def read(self, limits: ImageLimits) -> bytes:
        """Returns the whole encoded file.

        Raises:
            UnreadableFile: if it does not exist, cannot be read or is not a regular file.
            ImageTooLarge: for more bytes than the limit.
        """
        if not self.name:  # as a path it would be the current folder
            raise UnreadableFile("the name of the image is empty")
        if self.missing is not None:
            raise UnreadableFile(self.missing)
        try:
            if self.name == STDIN:
                return read_at_most(sys.stdin.buffer, limits.max_bytes + 1)
            return read_regular_file(Path(self.name), limits.max_bytes)
        except FileTooLarge as error:
            check_byte_count(error.num_bytes, limits)
            raise
        except ValueError as error:  # a name that no file can have
            raise UnreadableFile(str(error)) from error
        except MemoryError as error:
            raise UnreadableFile("not enough memory to read the file") from error
        except OSError as error:
            raise UnreadableFile(error.strerror or str(error)) from error


def find_images(arguments: Sequence[str], outputs: Path | None = None) -> list[ImageFile]:
    """Expands the arguments to image files, in their order.

    A folder expands to the image files in it and below, also behind links to folders; a pattern
    (`*`, `?`, `[...]`) to the files that match; both sorted by name. What cannot be read stays in
    the list, so that its error is reported in its place: an argument without any file and a folder
    that cannot be read as `missing` ones.

    Args:
        arguments: files, folders, patterns, `-`.
        outputs: folder of the output. If it is below an input folder, its files are no inputs.
    """
    return [file for argument in arguments for file in _expand(argument, outputs)]


def _expand(argument: str, outputs: Path | None) -> list[ImageFile]:
    if argument in ("", STDIN):
        return [ImageFile(argument)]
    # Unlike those of Path, the functions of os.path are False where a path cannot be looked up.
    if os.path.isdir(argument):
        inside = _images_below(argument, _input_rule(Path(argument), outputs))
        return inside or [ImageFile(argument, "no image files in this folder")]
    # A file of exactly this name comes first: brackets and stars are allowed in names.
    if not os.path.exists(argument) and glob.has_magic(argument):
        is_input = _input_rule(_folder_of_pattern(argument), outputs)
        found = glob.glob(argument, recursive=True)
        matches = sorted(m for m in found if is_input(m) and not _is_known_to_be_no_file(m))
        if not matches:
            return [ImageFile(argument, "no file matches")]
        return [ImageFile(match) for match in matches]
    return [ImageFile(argument)]


def _is_known_to_be_no_file(path: str) -> bool:
    """Whether a path leads to a folder, a device or a pipe; False where it cannot be looked up."""
    return os.path.exists(path) and not os.path.isfile(path)


def _images_below(top: str, is_input: Callable[[str], bool]) -> list[ImageFile]:
    """The image files in a folder and below, and the folders that cannot be read.

    Links to folders are followed after all other folders, so that a file that is in the folder
    itself keeps its own path. Each folder is listed once, so that links in a circle end.

    Args:
        top: the folder.
        is_input: whether the file or folder of a path is an input.

    Returns:
        The files, sorted by path.
    """
    found: list[ImageFile] = []
    folders, links = [top], deque[str]()
    listed: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in listed:
                continue
            listed.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=attrgetter("name"))
        except OSError as error:
            found.append(_unreadable(folder, error))
            continue
        for entry in filter(lambda entry: is_input(entry.path), inside):
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.path)
                elif _has_image_name(entry.name) and not _is_known_to_be_no_file(entry.path):
                    found.append(ImageFile(str(Path(entry.path))))
            except OSError as error:  # of a link that cannot be followed; it may lead to a folder
                if _has_image_name(entry.name) or isinstance(error, PermissionError):
                    found.append(_unreadable(entry.path, error))
    return sorted(found, key=lambda file: Path(file.name))


def _has_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _unreadable(path: str, error: OSError) -> ImageFile:
    return ImageFile(str(Path(path)), error.strerror or str(error))


def _input_rule(folder: Path, outputs: Path | None) -> Callable[[str], bool]:
    """Returns whether what is in a folder is an input: not `outputs` nor in it, if it is below."""
    base = _real(folder)
    excluded = None if outputs is None else _real(outputs)
    if excluded is None or base not in excluded.parents:
        return lambda _path: True

    def is_input(path: str) -> bool:
        real = _real(path)
        return real != excluded and excluded not in real.parents

    return is_input


def _real(path: str | Path) -> Path:
    """Returns a path without links; unlike Path.resolve also where links lead in a circle."""
    return Path(os.path.realpath(path))


def _folder_of_pattern(pattern: str) -> Path:
    """Returns the folder at the start of a pattern, up to the first part with a `*`, `?` or `[`."""
    parts = Path(pattern).parts
    plain = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:plain])
