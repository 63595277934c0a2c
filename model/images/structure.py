"""Checks of an image file's structure before it is decoded.

A small image can take minutes or gigabytes to read if its header has a million chunks or its
progressive JPEG a thousand scans. Pixel limits do not cover that, so they are counted here.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

import numpy as np

from model.images.errors import ImageTooLarge, InvalidImage

# A large photo takes some ten thousand reads; a second of CPU time, several million.
_MAX_READS = 2_000_000
# Pillow expands run lengths in Python, pixel by pixel where a line ends early.
_MAX_RUN_LENGTH_PIXELS = 4_000_000
_MAX_TIFF_ENTRIES = 4096
_MAX_TIFF_STRIPS = 1 << 17  # one per row of the tallest accepted image

_CHUNK_BYTES = 1 << 16  # searched at a time: fits the cache
_JPEG_MARKER = 0xFF
_JPEG_SCAN = 0xDA
_JPEG_END = 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
# The end of a scan's data: 0xff that begins neither a stuffed byte, a restart nor a fill.
_JPEG_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_BMP_RUN_LENGTH = frozenset({1, 2})  # 8 and 4 bits a pixel
# Offsets and lengths of an image's strips or tiles.
_TIFF_STRIP_TAGS = frozenset({273, 279, 324, 325})


def open_in_memory(name: str, data: bytes | memoryview) -> io.BytesIO:
    """Opens a file for Pillow, with a limit on the number of reads.

    Args:
        name: of its format, from `identify_format`.
        data: the whole file.
    """
    # A JPEG is read forwards only, at least a byte at a time: a short one needs no limit.
    return io.BytesIO(data) if name == "JPEG" and len(data) <= _MAX_READS else ReadLimitedFile(data)


class ReadLimitedFile(io.BytesIO):
    """A file in memory with a limit on the number of reads.

    Pillow parses a file's chunks in Python, with a few reads each, and reads pixels in large parts.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        """Opens the file at its start."""
        super().__init__(data)
        self._reads_left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as `io.BytesIO` does.

        Raises:
            InvalidImage: when the limit is exceeded.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise InvalidImage("the image is made of too many pieces to be read in reasonable time")
        return super().read(size)


def check_structure(name: str, data: bytes | memoryview, max_jpeg_scans: int) -> None:
    """Refuses a file that would take far more time or memory than its pixels do.

    Args:
        name: of its format, from `identify_format`.
        data: the whole file; a broken one is left to the decoder to refuse.
        max_jpeg_scans: limit for a JPEG; a progressive one has about ten.

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
    # An upper bound: the two bytes can also occur in segments and after the end of the image.
    if _count_scan_markers(data) <= max_scans:
        return
    num_scans = sum(1 for _ in _jpeg_scans(bytes(data), max_scans))
    if num_scans > max_scans:
        raise InvalidImage(
            f"the JPEG image has more than {max_scans} scans; a progressive one has about 10"
        )


def _count_scan_markers(data: bytes | memoryview) -> int:
    """Counts the two bytes of a scan marker; `bytes.count` takes three times as long."""
    samples = np.frombuffer(data, dtype=np.uint8)
    count = 0
    for start in range(0, len(samples), _CHUNK_BYTES):
        chunk = samples[start : start + _CHUNK_BYTES + 1]  # one more: a pair may cross the end
        pairs = (chunk[:-1] == _JPEG_MARKER) & (chunk[1:] == _JPEG_SCAN)
        count += int(np.count_nonzero(pairs))
    return count


def _jpeg_scans(data: bytes, max_scans: int) -> Iterator[int]:
    """Yields the positions of the image's scans, at most one more than `max_scans`."""
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
    """Yields tag and count of the entries of the first directory, up to the end of the data.

    Raises:
        InvalidImage: for too many entries.
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
