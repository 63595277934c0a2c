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
_LONG, _LONG8_KINDS = 4, frozenset({16, 17, 18})
# Of a TIFF that is not a BigTIFF.
_CLASSIC, _HEADER_BYTES, _COUNT_BYTES, _ENTRY_BYTES, _OFFSET_BYTES = 42, 8, 2, 12, 4
_BYTES_TYPES = frozenset({2, 7})

IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES_PER_PIXEL = 273, 274, 277
ROWS_PER_STRIP, STRIP_BYTE_COUNTS = 278, 279
PLANAR_CONFIGURATION, PREDICTOR, FILL_ORDER, COLOR_MAP = 284, 317, 266, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS = 322, 323, 324, 325
SUB_DIRECTORIES, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 330, 332, 338, 339
JPEG_TABLES, YCBCR_SUBSAMPLING, XMP, DNG_VERSION, NEW_SUBFILE_TYPE = 347, 530, 700, 50706, 254
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

    def entry(self, tag: int) -> Entry:
        """Returns an entry for `with_directories`."""
        found = self.entries[tag]
        return integer_entry(self, self.integers(tag)) if found.kind in _LONG8_KINDS else found

    def integer(self, tag: int, default: int) -> int:
        """Returns the first value of an entry, or the default."""
        values = self.integers(tag)
        return int(values[0]) if len(values) else default


def integer_entry(directory: TiffDirectory, values: Iterable[int] | npt.NDArray[np.int64]) -> Entry:
    """Returns an entry of integers of 32 bits, for `with_directories`."""
    numbers = np.asarray(values if isinstance(values, np.ndarray) else list(values))
    return Entry(_LONG, len(numbers), numbers.astype(directory.order + "u4").tobytes())


def with_directories(
    data: memoryview, directory: TiffDirectory, pages: list[dict[int, Entry]]
) -> bytes:
    """Returns a file with other directories, which replace all that it has.

    It is never a BigTIFF: Pillow does not open those in big-endian order.

    Args:
        data: the whole file, less than 4 GiB.
        directory: its first directory, for the byte order.
        pages: the entries of each new directory, by tag.
    """
    order = directory.order
    position = len(data) + len(data) % 2
    parts: list[bytes | memoryview] = [
        data[:2],
        struct.pack(order + "HI", _CLASSIC, position),
        data[_HEADER_BYTES:],
        bytes(len(data) % 2),
    ]
    for number, page in enumerate(pages):
        values_at = position + _COUNT_BYTES + len(page) * _ENTRY_BYTES + _OFFSET_BYTES
        entries, values = [struct.pack(order + "H", len(page))], []
        for tag, entry in sorted(page.items()):
            value = bytes(entry.value)
            if len(value) > _OFFSET_BYTES:
                values.append(value + bytes(len(value) % 2))
                value = struct.pack(order + "I", values_at)
                values_at += len(values[-1])
            entries.append(struct.pack(order + "HHI", tag, entry.kind, entry.count))
            entries.append(value.ljust(_OFFSET_BYTES, b"\x00"))
        following = values_at if number + 1 < len(pages) else 0
        parts += [*entries, struct.pack(order + "I", following), *values]
        position = values_at
    return b"".join(parts)
