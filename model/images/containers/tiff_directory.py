"""The first directory of a TIFF or BigTIFF, read and written (TIFF 6.0, section 2)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.images.errors import InvalidImage

_MAX_ENTRIES = 4096
_MAX_STRIPS = 1 << 17  # one per row of the tallest accepted image
_MAX_VALUE_BYTES = 8 * _MAX_STRIPS
# By the number of a type: format of one value in numpy. RATIONAL is two.
_FORMATS = {
    1: "u1",
    2: "u1",
    3: "u2",
    4: "u4",
    5: "2u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    10: "2i4",
    11: "f4",
    12: "f8",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
_SHORT, _LONG, _LONG8 = 3, 4, 16
_BYTES_TYPES = frozenset({2, 7})

IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES_PER_PIXEL = 273, 274, 277
ROWS_PER_STRIP, STRIP_BYTE_COUNTS = 278, 279
PLANAR_CONFIGURATION, PREDICTOR, FILL_ORDER, COLOR_MAP = 284, 317, 266, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS = 322, 323, 324, 325
SUB_DIRECTORIES, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 330, 332, 338, 339
YCBCR_SUBSAMPLING, XMP, DNG_VERSION, NEW_SUBFILE_TYPE = 530, 700, 50706, 254
_STRIP_TAGS = frozenset({STRIP_OFFSETS, STRIP_BYTE_COUNTS, TILE_OFFSETS, TILE_BYTE_COUNTS})


@dataclass(frozen=True)
class Entry:
    """One entry of a directory: `count` values of a type, as bytes in the file's order."""

    kind: int
    count: int
    value: bytes | memoryview


class TiffDirectory:
    """The entries of a file's first directory.

    Attributes:
        order: "<" or ">", of the file's bytes.
        is_big: whether the file is a BigTIFF.
        entries: by tag, the first one of each.
    """

    def __init__(self, data: memoryview) -> None:
        """Reads the directory.

        Raises:
            InvalidImage: if it is broken, or has too many entries or strips.
        """
        self.order = "<" if bytes(data[:2]) == b"II" else ">"
        self.is_big = bytes(data[2:4]) in (b"+\x00", b"\x00+")
        self.entries: dict[int, Entry] = {}
        try:
            self._read(data)
        except (struct.error, OverflowError) as error:
            raise InvalidImage(
                "the TIFF image cannot be decoded: it is truncated, or its header is broken"
            ) from error

    def _read(self, data: memoryview) -> None:
        offset_format, count_format = ("Q", "Q") if self.is_big else ("I", "H")
        entry_format = self.order + "HH" + offset_format
        inline_bytes = struct.calcsize(offset_format)
        (offset,) = struct.unpack_from(self.order + offset_format, data, 8 if self.is_big else 4)
        (num_entries,) = struct.unpack_from(self.order + count_format, data, offset)
        if num_entries > _MAX_ENTRIES:
            raise InvalidImage(
                f"the TIFF image has {num_entries} tags; at most {_MAX_ENTRIES} are read"
            )
        position = offset + struct.calcsize(count_format)
        for _ in range(num_entries):
            tag, kind, count = struct.unpack_from(entry_format, data, position)
            position += struct.calcsize(entry_format)
            start = position
            position += inline_bytes
            num_bytes = count * np.dtype(_FORMATS.get(kind, "u1")).itemsize
            if num_bytes > inline_bytes:
                (start,) = struct.unpack_from(self.order + offset_format, data, start)
            self._add(tag, kind, count, data[start : start + num_bytes])

    def _add(self, tag: int, kind: int, count: int, value: memoryview) -> None:
        if tag in _STRIP_TAGS and count > _MAX_STRIPS:
            raise InvalidImage(
                f"the TIFF image has {count} strips or tiles; at most {_MAX_STRIPS} are read"
            )
        is_whole = kind in _FORMATS and len(value) == count * np.dtype(_FORMATS[kind]).itemsize
        if is_whole and (len(value) <= _MAX_VALUE_BYTES or tag == XMP):
            self.entries.setdefault(tag, Entry(kind, count, value))

    def integers(self, tag: int) -> npt.NDArray[np.int64]:
        """Returns the values of an entry; none if it is absent or no list of integers."""
        entry = self.entries.get(tag)
        if entry is None or _FORMATS[entry.kind][0] not in "ui" or entry.kind in _BYTES_TYPES:
            return np.zeros(0, np.int64)
        values = np.frombuffer(entry.value, np.dtype(self.order + _FORMATS[entry.kind]))
        if values.dtype.itemsize == 8:  # noqa: PLR2004 - offsets of 2**63 are beyond any file
            values = np.minimum(values, np.iinfo(np.int64).max)
        return values.astype(np.int64)

    def integer(self, tag: int, default: int) -> int:
        """Returns the first value of an entry, or the default."""
        values = self.integers(tag)
        return int(values[0]) if len(values) else default

    def integer_entry(self, values: Iterable[int] | npt.NDArray[np.int64]) -> Entry:
        """Returns an entry of integers for a directory of this file."""
        numbers = np.asarray(values if isinstance(values, np.ndarray) else list(values))
        kind = _LONG8 if self.is_big else _LONG
        encoded = numbers.astype(self.order + _FORMATS[kind]).tobytes()
        return Entry(kind, len(numbers), encoded)


def with_directories(
    data: memoryview, directory: TiffDirectory, pages: list[dict[int, Entry]]
) -> bytes:
    """Returns a file with other directories, which replace all that it has.

    Args:
        data: the whole file.
        directory: its first directory, for the byte order and the kind of TIFF.
        pages: the entries of each new directory, by tag.
    """
    order, is_big = directory.order, directory.is_big
    offset_format, count_format = ("Q", "Q") if is_big else ("I", "H")
    offset_bytes = struct.calcsize(offset_format)
    header_bytes = 8 + 8 * is_big
    first = len(data) + len(data) % 2
    parts: list[bytes | memoryview] = [
        data[: header_bytes - offset_bytes],
        struct.pack(order + offset_format, first),
        data[header_bytes:],
        bytes(len(data) % 2),
    ]
    position = first
    for number, page in enumerate(pages):
        size = struct.calcsize(count_format) + len(page) * (4 + 2 * offset_bytes) + offset_bytes
        values_at = position + size
        entries, values = [struct.pack(order + count_format, len(page))], []
        for tag, entry in sorted(page.items()):
            value = bytes(entry.value)
            if len(value) > offset_bytes:
                values.append(value + bytes(len(value) % 2))
                value = struct.pack(order + offset_format, values_at)
                values_at += len(values[-1])
            entries.append(struct.pack(order + "HH" + offset_format, tag, entry.kind, entry.count))
            entries.append(value.ljust(offset_bytes, b"\x00"))
        following = values_at if number + 1 < len(pages) else 0
        parts += [*entries, struct.pack(order + offset_format, following), *values]
        position = values_at
    return b"".join(parts)
