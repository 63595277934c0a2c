"""Boxes of the ISO base media file format, which HEIF files consist of (ISO/IEC 14496-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from model.images.errors import InvalidImage

_MAX_BOXES = 1 << 14  # next to each other
_SHORT_HEADER, _LONG_HEADER = 8, 16
_IN_LONG_HEADER, _TO_THE_END = 1, 0


def boxes(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields type and body of each box; boxes inside others are not read.

    Args:
        view: the file, or the body of a box. A box that it cuts off is yielded without its end.

    Raises:
        InvalidImage: for too many boxes, and one with an impossible length.
        struct.error: for a header that is cut off.
    """
    position = 0
    for _ in range(_MAX_BOXES):
        if position + _SHORT_HEADER > len(view):
            return
        length, kind = struct.unpack_from(">I4s", view, position)
        header = _SHORT_HEADER
        if length == _IN_LONG_HEADER:
            header = _LONG_HEADER
            (length,) = struct.unpack_from(">Q", view, position + _SHORT_HEADER)
        elif length == _TO_THE_END:
            length = len(view) - position
        if length < header:
            raise InvalidImage("the HEIF image cannot be decoded: a box has an impossible length")
        yield kind, view[position + header : position + length]
        position += length
    raise InvalidImage(f"the HEIF image has more than {_MAX_BOXES} boxes next to each other")


def first_boxes(view: memoryview) -> dict[bytes, memoryview]:
    """Returns the body of the first box of each type."""
    found: dict[bytes, memoryview] = {}
    for kind, body in boxes(view):
        found.setdefault(kind, body)
    return found


def box(kind: bytes, *parts: bytes | memoryview) -> bytes:
    """Returns a box of this type and body."""
    return b"".join(
        (struct.pack(">I4s", _SHORT_HEADER + sum(map(len, parts)), kind), *parts),
    )


def full_box(kind: bytes, version: int, flags: int, *parts: bytes | memoryview) -> bytes:
    """Returns a box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


class Fields:
    """Reads integers of a box one after the other, in big-endian order."""

    def __init__(self, view: memoryview) -> None:
        """Begins at the start of `view`."""
        self._view = view
        self._position = 0

    def take(self, num_bytes: int) -> int:
        """Returns the next integer, 0 if it has no bytes.

        Raises:
            struct.error: where the box ends.
        """
        return int.from_bytes(self.take_bytes(num_bytes))

    def take_bytes(self, num_bytes: int) -> bytes:
        """Returns the next bytes.

        Raises:
            struct.error: where the box ends.
        """
        end = self._position + num_bytes
        if end > len(self._view):
            raise struct.error(f"{num_bytes} bytes are missing")
        taken = bytes(self._view[self._position : end])
        self._position = end
        return taken

    def version_and_flags(self) -> tuple[int, int]:
        """Returns both from the start of a full box."""
        return self.take(1), self.take(3)
