"""The image files that the arguments of `lite-detr detect` name: files, folders, patterns, `-`."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    A folder expands to the image files in it and below, a pattern (`*`, `?`, `[...]`) to the
    files that match, both sorted by name. An argument without any file stays in the list as a
    `missing` one, so that its error is reported in its place.

    Args:
        arguments: files, folders, patterns, `-`.
        outputs: folder of the output. If it is below an input folder, its files are no inputs.
    """
    return [file for argument in arguments for file in _expand(argument, outputs)]


def _expand(argument: str, outputs: Path | None) -> list[ImageFile]:
    if argument in ("", STDIN):
        return [ImageFile(argument)]
    path = Path(argument)
    if path.is_dir():
        is_input = _input_rule(path, outputs)
        inside = sorted(
            p
            for p in path.rglob("*")
            if p.suffix.lower() in IMAGE_SUFFIXES and is_input(p) and p.is_file()
        )
        if not inside:
            return [ImageFile(argument, "no image files in this folder")]
        return [ImageFile(str(file)) for file in inside]
    # A file of exactly this name comes first: brackets and stars are allowed in names.
    if not path.exists() and glob.has_magic(argument):
        is_input = _input_rule(_folder_of_pattern(argument), outputs)
        matches = sorted(
            m
            for m in glob.glob(argument, recursive=True)
            if is_input(Path(m)) and Path(m).is_file()
        )
        if not matches:
            return [ImageFile(argument, "no file matches")]
        return [ImageFile(match) for match in matches]
    return [ImageFile(argument)]


def _input_rule(folder: Path, outputs: Path | None) -> Callable[[Path], bool]:
    """Returns whether a file found in a folder is an input: not in `outputs`, if that is below."""
    base = folder.resolve()
    excluded = None if outputs is None else outputs.resolve()
    if excluded is None or base not in excluded.parents:
        return lambda _file: True
    return lambda file: excluded not in file.resolve().parents


def _folder_of_pattern(pattern: str) -> Path:
    """Returns the folder at the start of a pattern, up to the first part with a `*`, `?` or `[`."""
    parts = Path(pattern).parts
    plain = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:plain])
