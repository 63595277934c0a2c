"""GIF: the blocks that the pixels of the first frame need (the specification GIF89a)."""

from __future__ import annotations

import struct

from model.images.containers.source import ImageSource
from model.images.errors import InvalidImage
from model.images.limits import ImageLimits

_HEADER_BYTES = 13  # with the logical screen descriptor
_MAX_BLOCKS = 1 << 17  # before the first frame
_EXTENSION, _FRAME = 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9
_DESCRIPTOR_BYTES = 10
# The end of the frame's data, and of the file.
_END = b"\x00;"


def read_gif(data: bytes | memoryview, _limits: ImageLimits) -> ImageSource:
    """Returns a GIF without the extensions before its first frame, but for the frame's own.

    A file may end after its pixels.

    Args:
        data: the whole file; a broken one is left to the decoder to refuse.

    Raises:
        InvalidImage: for too many blocks before the first frame.
    """
    view = memoryview(data)
    if len(view) < _HEADER_BYTES:
        return ImageSource(data)
    position = _HEADER_BYTES + _palette_bytes(view[10])
    head = view[:position]
    control = view[:0]
    blocks = 0
    while position + 1 < len(view) and view[position] == _EXTENSION:
        start, kind = position, view[position + 1]
        position += 2
        while position < len(view) and view[position] and blocks <= _MAX_BLOCKS:
            position += 1 + view[position]
            blocks += 1
        position += 1
        blocks += 1
        if blocks > _MAX_BLOCKS:
            raise InvalidImage(
                f"the GIF image has more than {_MAX_BLOCKS} blocks before its pixels"
            )
        if kind == _GRAPHIC_CONTROL:
            control = view[start:position]
    data = b"".join((head, control, view[position:], _END))
    return ImageSource(data, frame=_frame(view[position:]))


def _frame(descriptor: memoryview) -> tuple[int, int, int, int] | None:
    """Returns the place of a frame on the screen: left, top, right and bottom."""
    if len(descriptor) < _DESCRIPTOR_BYTES or descriptor[0] != _FRAME:
        return None
    left, top, width, height = struct.unpack_from("<4H", descriptor, 1)
    return left, top, left + width, top + height


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
