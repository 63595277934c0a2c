"""Outputs of commands: an existing file is replaced only if the user says so (`--overwrite`)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from model.data.errors import OutputError

_STANDARD_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,6})")
_LONGEST_NAME_BYTES = 255  # of most file systems


class FileSet(Container[Path]):
    """Existing files by identity: a path is in it if it leads to one of them, by links too."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Takes the files; paths without a file are ignored."""
        self._identities = set(filter(None, map(_identity, paths)))

    def __contains__(self, path: object) -> bool:
        """Whether a path leads to one of the files."""
        return isinstance(path, Path) and _identity(path) in self._identities


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file that a path leads to; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or an open file such as /dev/stdout.

    They are written in place: a new file in their folder must not take their name.
    """
    # Unlike those of Path, these functions are False where a path cannot be looked up.
    return _open_descriptor(path) is not None or (os.path.exists(path) and not os.path.isfile(path))


def _open_descriptor(path: Path) -> int | None:
    """The number of the open file that a path of /dev or /proc/self leads to; None for others."""
    name = os.path.abspath(path)
    if name in _STANDARD_STREAMS:
        return _STANDARD_STREAMS[name]
    match = _DESCRIPTOR.fullmatch(name)
    return None if match is None else int(match[1])


def check_output_file(
    path: Path, *, overwrite: bool, inputs: Iterable[Path] = (), regular: bool = False
) -> None:
    """Checks that a file can be written, before the work of which it is the result.

    Args:
        path: the file. Devices and pipes, such as /dev/stdout, are never replaced.
        overwrite: allows to replace an existing file.
        inputs: files that the command reads; they are never replaced.
        regular: refuses devices and pipes.

    Raises:
        OutputError: if the file exists or is an input, or its folder does not exist or is
            read-only; for a path that cannot be looked up, such as a name that is too long; for
            `-`, which would be a file of that name.
    """
    if str(path) == "-":
        raise OutputError("- is no file name here: name a file, or /dev/stdout")
    _check_path(path)
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder, not a file to write")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
    if regular and is_stream(path):
        raise OutputError(f"{path} is not a regular file")
    if not is_stream(path) and not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {path.parent} is read-only for this user")
    if path in FileSet(inputs):
        raise OutputError(f"{path} is an input of this command and is not replaced by its output")
    if not overwrite and _would_be_replaced(path):
        raise OutputError(_exists(path))


def _check_path(path: Path) -> None:
    """Checks that a path can be looked up, whether or not there is a file.

    Raises:
        OutputError: for a name that is too long, and for a folder that may not be searched.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def check_suffix(path: Path, suffix: str, others: Container[str]) -> None:
    """Refuses a file name that is that of another format.

    Args:
        path: the file.
        suffix: that of the format which is written, such as ".png".
        others: of other formats, in lower case.

    Raises:
        OutputError: for one of the others.
    """
    if path.suffix.lower() in others:
        better = path.with_suffix(suffix)
        raise OutputError(f"{path} is not the name of a {suffix} file: name it {better}")


def write_output(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Writes a file as a whole: there is no part of it under its name.

    Raises:
        OutputError: if the file exists and may not be overwritten.
        OSError: if it cannot be written; then no part of it remains.
    """

    def check(_written: Path) -> None:
        if not overwrite and _would_be_replaced(path):
            raise OutputError(_exists(path))

    _write_whole(path, data, check)


def write_output_whole(path: Path, data: bytes) -> None:
    """Writes a file that `check_output_file` allows, and replaces what was there only at the end.

    Raises:
        OSError: if it cannot be written; then no part of it remains.
    """
    _write_whole(path, data)


def _write_whole(path: Path, data: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Writes a file; `check` is that of `replacing`."""
    with naming_file(path):
        if is_stream(path):
            _write_stream(path, data)
            return
        # Behind links, so that they stay links.
        with replacing(Path(os.path.realpath(path)), check) as file:
            file.write(data)


@contextlib.contextmanager
def replacing(path: Path, check: Callable[[Path], object] | None = None) -> Iterator[BinaryIO]:
    """Context manager: a new file that takes the place of `path` when the block has ended.

    It keeps the permissions of an older one.

    Of a block that fails no part remains, and what was there is kept.

    Args:
        path: a regular file, or none yet.
        check: called with the written file, which has another name, before it is renamed.

    Raises:
        OSError: if it cannot be written.
    """
    part = path.with_name(_part_name(path.name))
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(part)
        with contextlib.suppress(OSError):  # there is none yet, or it belongs to somebody else
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # such as of a read-only file system
            part.unlink()


def _part_name(name: str) -> str:
    """Returns the name of a file while it is written; that of a long name has a hash in it."""
    part = f".{name}.{os.getpid()}.part"
    if len(os.fsencode(part)) <= _LONGEST_NAME_BYTES:
        return part
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.{os.getpid()}.part"


def _write_stream(path: Path, data: bytes) -> None:
    descriptor = _open_descriptor(path)
    # An open file is not opened again: that would empty it, or write to its beginning.
    with path.open("wb") if descriptor is None else open(os.dup(descriptor), "wb") as file:
        file.write(data)


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Adds the name of the file to an OSError; a failed write has none."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)  # Pillow's errors have neither number nor cause
        raise OSError(error.errno or errno.EIO, cause, str(path)) from error


def _would_be_replaced(path: Path) -> bool:
    return not is_stream(path) and (os.path.isfile(path) or os.path.islink(path))


def _exists(path: Path) -> str:
    return f"{path} exists already: name another file, or add --overwrite to replace it"
