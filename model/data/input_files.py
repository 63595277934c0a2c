"""Files that a user names, read with a limit: only regular files, never a pipe or a device."""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
import unicodedata
from pathlib import Path
from typing import BinaryIO

TEXT_BYTES = 16 << 20  # of lists of names, keys and certificates
_CHUNK_BYTES = 1 << 20
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FileTooLarge(OSError):
    """A file of more bytes than are read; `num_bytes` is how many it has, or at least has."""

    def __init__(self, path: Path, num_bytes: int, max_bytes: int) -> None:
        """Joins the sizes into the message."""
        text = f"the file has {num_bytes} bytes or more; at most {max_bytes} are read"
        super().__init__(errno.EFBIG, text, str(path))
        self.num_bytes = num_bytes


def check_regular_file(path: Path) -> None:
    """Checks that a path leads to a regular file, without opening it.

    Raises:
        OSError: if it does not exist or is of another kind, which the message names.
    """
    _check_kind(path, os.stat(path))


def open_regular_file(path: Path) -> io.BufferedReader:
    """Opens a regular file for reading; symbolic links are followed.

    Raises:
        OSError: if it does not exist, cannot be opened or is not a regular file. Neither waits,
            as opening a named pipe does, nor opens a device.
    """
    check_regular_file(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _check_kind(path, os.fstat(descriptor))  # it may have been replaced since
    except OSError:
        file.close()
        raise
    return file


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a regular file, of which at most `max_bytes` + 1 bytes are read.

    Raises:
        FileTooLarge: for a file of more bytes.
        OSError: as `open_regular_file`, and if memory is short.
    """
    try:
        with open_regular_file(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > max_bytes:
                raise FileTooLarge(path, num_bytes, max_bytes)
            data = read_at_most(file, max_bytes + 1, num_bytes + 1)
    except MemoryError:
        raise OSError(errno.ENOMEM, "not enough memory to read the file", str(path)) from None
    if len(data) > max_bytes:  # it has grown, or has no size of its own, as in /proc
        raise FileTooLarge(path, len(data), max_bytes)
    return data


def read_text_file(path: Path, max_bytes: int = TEXT_BYTES) -> str:
    """Returns the content of a regular UTF-8 file, without a byte order mark.

    With the mark of UTF-16, as some programs of Windows write it, the text may be UTF-16.

    Raises:
        OSError: as `read_regular_file`.
        UnicodeDecodeError: for other bytes.
    """
    data = read_regular_file(path, max_bytes)
    return data.decode("utf-16" if data.startswith(_UTF_16_MARKS) else "utf-8-sig")


def spellings(name: str) -> tuple[str, ...]:
    """Returns a file name in the Unicode forms that differ between systems; none for ASCII."""
    return () if name.isascii() else tuple(unicodedata.normalize(f, name) for f in ("NFC", "NFD"))


def one_spelling(name: str) -> str:
    """Returns a name in the Unicode form NFC, so that the same names of several files are equal."""
    return unicodedata.normalize("NFC", name)


def read_at_most(file: BinaryIO, max_bytes: int, expected_bytes: int = _CHUNK_BYTES) -> bytes:
    """Returns the rest of a file, or its first `max_bytes` bytes.

    Args:
        file: an open file.
        max_bytes: how many to read at most; memory is allocated only for those that are there.
        expected_bytes: how many to read at first.
    """
    data = file.read(min(max_bytes, expected_bytes)) or b""
    if len(data) < min(max_bytes, expected_bytes):
        return data
    chunks, num_bytes = [data], len(data)
    while num_bytes < max_bytes and (more := file.read(min(_CHUNK_BYTES, max_bytes - num_bytes))):
        chunks.append(more)
        num_bytes += len(more)
    return b"".join(chunks)


def _check_kind(path: Path, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "of another kind")
    raise OSError(errno.EINVAL, f"not a regular file but {kind}", str(path))
