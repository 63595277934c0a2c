"""How an image file is built, looked at before a decoder sees it: used by `images`.

A small picture can take minutes or gigabytes to read: its header holds a million pieces, its
progressive JPEG a thousand scans. Pixel limits do not see that, so the pieces are counted here.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

import numpy as np

from model.images.errors import ImageTooLarge, InvalidImage

# A large photo is read in some ten thousand steps; a second of a CPU's time takes several million.
_MAX_READS = 2_000_000
# Pillow expands run lengths in Python, a pixel at a time where a line ends early.
_MAX_RUN_LENGTH_PIXELS = 4_000_000
_MAX_TIFF_ENTRIES = 4096
_MAX_TIFF_STRIPS = 1 << 17  # one a row of the tallest picture that is accepted

_PIECE_BYTES = 1 << 16  # that are looked at together: in the cache, and twice its size of memory
_JPEG_MARK = 0xFF
_JPEG_SCAN = 0xDA
_JPEG_END = 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment behind them
# The end of a scan's data: 0xff that is neither a stuffed byte, a restart nor a fill.
_JPEG_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_BMP_RUN_LENGTH = frozenset({1, 2})  # 8 and 4 bits a pixel
# Where a picture's strips or tiles lie, and how long they are.
_TIFF_STRIP_TAGS = frozenset({273, 279, 324, 325})


def open_in_memory(name: str, data: bytes | memoryview) -> io.BytesIO:
    """Opens a file for Pillow, which gets no further than so many reads.

    Args:
        name: of its format, as `formats.recognise` tells it.
        data: the whole file.
    """
    # A JPEG is read forwards only, at least a byte a time: a short one needs no meter.
    return io.BytesIO(data) if name == "JPEG" and len(data) <= _MAX_READS else MeteredFile(data)


class MeteredFile(io.BytesIO):
    """A file in memory that can be read in so many steps, and no more.

    Pillow's readers walk a file's pieces in Python, some reads a piece; pixels come in large ones.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        """Opens the file at its start."""
        super().__init__(data)
        self._reads_left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as any file does.

        Raises:
            InvalidImage: for one read too many.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise InvalidImage("the image is made of too many pieces to be read in reasonable time")
        return super().read(size)


def check_structure(name: str, data: bytes | memoryview, max_jpeg_scans: int) -> None:
    """Refuses a file that would take far more time or memory than its pixels do.

    Args:
        name: of its format, as `formats.recognise` tells it.
        data: the whole file. It may be broken: that is for the decoder to say.
        max_jpeg_scans: of a JPEG; a progressive one has about ten.

    Raises:
        InvalidImage: for too many JPEG scans, TIFF strips or TIFF tags.
        ImageTooLarge: for too many pixels in a run-length encoded BMP.
    """
    if name == "JPEG":
        _check_jpeg(data, max_jpeg_scans)
    elif name == "TIFF":
        _check_tiff(data)
    elif name == "BMP":
        _check_bmp(data)


def _check_jpeg(data: bytes | memoryview, max_scans: int) -> None:
    # Chance brings the two bytes into segments and into what phones put behind the picture.
    if _count_scan_marks(data) <= max_scans:
        return
    num_scans = sum(1 for _ in _jpeg_scans(bytes(data), max_scans))
    if num_scans > max_scans:
        raise InvalidImage(
            f"the JPEG image has more than {max_scans} scans; a progressive one has about 10"
        )


def _count_scan_marks(data: bytes | memoryview) -> int:
    """How often the mark of a scan stands in a file; `bytes.count` takes three times as long."""
    samples = np.frombuffer(data, dtype=np.uint8)
    count = 0
    for start in range(0, len(samples), _PIECE_BYTES):
        piece = samples[start : start + _PIECE_BYTES + 1]  # one more: a pair may lie across
        pairs = (piece[:-1] == _JPEG_MARK) & (piece[1:] == _JPEG_SCAN)
        count += int(np.count_nonzero(pairs))
    return count


def _jpeg_scans(data: bytes, max_scans: int) -> Iterator[int]:
    """Where the picture's scans begin, one more than `max_scans` of them at most."""
    position, found = 2, 0
    while found <= max_scans:
        marker = _JPEG_NEXT.search(data, position)
        if marker is None:
            return
        kind, position = data[marker.end() - 1], marker.end()
        if kind == _JPEG_END:
            return
        if kind == _JPEG_SCAN:
            found += 1
            yield marker.start()
        if kind not in _JPEG_BARE and position + 2 <= len(data):
            position += int.from_bytes(data[position : position + 2], "big")


def _check_bmp(data: bytes | memoryview) -> None:
    header = bytes(data[14:34])
    if len(header) < 20 or header[16] not in _BMP_RUN_LENGTH or header[0] < 40:  # noqa: PLR2004
        return
    width, height = struct.unpack("<ii", header[4:12])
    if abs(width * height) > _MAX_RUN_LENGTH_PIXELS:
        raise ImageTooLarge(
            f"the BMP image is run-length encoded and has {width} x {abs(height)} pixels; at most "
            f"{_MAX_RUN_LENGTH_PIXELS} of that kind are accepted, or send it uncompressed"
        )


def _check_tiff(data: bytes | memoryview) -> None:
    for tag, count in _tiff_entries(data):
        if tag in _TIFF_STRIP_TAGS and count > _MAX_TIFF_STRIPS:
            raise InvalidImage(
                f"the TIFF image has {count} strips or tiles; at most {_MAX_TIFF_STRIPS} are read"
            )


def _tiff_entries(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Tag and count of the entries of the first directory, as far as it goes.

    Raises:
        InvalidImage: for more entries than there are tags.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\x00", b"\x00+")
    offset_format, count_format, entry_format = ("Q", "Q", "HHQ8x") if big else ("L", "H", "HHL4x")
    try:
        (offset,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
        (num_entries,) = struct.unpack_from(order + count_format, data, offset)
        if num_entries > _MAX_TIFF_ENTRIES:
            raise InvalidImage(
                f"the TIFF image has {num_entries} tags; at most {_MAX_TIFF_ENTRIES} are read"
            )
        position = offset + struct.calcsize(order + count_format)
        for _ in range(num_entries):
            tag, _kind, count = struct.unpack_from(order + entry_format, data, position)
            yield tag, count
            position += struct.calcsize(order + entry_format)
    except (struct.error, OverflowError):
        return
