"""Still WebP through libwebp's simple interface, straight into a Pillow image's memory.

Pillow reads every WebP as an animation: libwebp keeps two canvases, and the pixels are copied
twice. The library that is called here is the one that Pillow is linked with, and it decodes the
same bytes to the same pixels. What this decoder refuses is left to Pillow, whose errors are
reported.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from PIL import Image

from model.images.pixel_memory import samples_of

_HEADER_BYTES = 12
_ALPHA = 0x10  # the only flag of a still image without metadata
_LOSSLESS_ALPHA = 1 << 28  # in the four bytes after the signature of a VP8L chunk
# Chunks of a still image without and with a canvas.
_SIMPLE = ([b"VP8 "], [b"VP8L"])
_EXTENDED = ([b"VP8X", b"VP8 "], [b"VP8X", b"VP8L"], [b"VP8X", b"ALPH", b"VP8 "])
_MOST_CHUNKS = 4


class StillImage(NamedTuple):
    """A WebP that is no animation.

    Attributes:
        coded: the chunks that libwebp decodes to pixels.
        mode: "RGB" or "RGBA".
        size: (width, height) by its header.
    """

    coded: bytes
    mode: str
    size: tuple[int, int]


class _Library(NamedTuple):
    """Two functions of libwebp, see its header file decode.h."""

    get_info: Callable[..., int]
    decode_into: Callable[..., int | None]


@cache
def _library() -> _Library | None:
    """Returns libwebp; None if Pillow is built without it, or has it linked statically."""
    try:
        from PIL import _webp  # noqa: PLC0415 - missing in some builds of Pillow

        library = ctypes.CDLL(_webp.__file__)
        get_info, decode_into = library.WebPGetInfo, library.WebPDecodeRGBAInto
    except (AttributeError, ImportError, OSError):
        return None
    integer = ctypes.POINTER(ctypes.c_int)
    get_info.argtypes = (ctypes.c_char_p, ctypes.c_size_t, integer, integer)
    decode_into.argtypes = (
        *(ctypes.c_char_p, ctypes.c_size_t),
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    )
    decode_into.restype = ctypes.c_void_p
    return _Library(get_info, decode_into)


def available() -> bool:
    """Whether the decoder can be called."""
    return _library() is not None


def read_still_image(data: bytes | memoryview) -> StillImage | None:
    """Reads the header of a still image.

    Args:
        data: the whole file, without metadata.

    Returns:
        None if Pillow must decode it: an animation, a broken header, or one whose canvas has
        another size or transparency than the image.
    """
    view = memoryview(data)
    kinds, starts = _chunks(view)
    library = _library()
    if library is None or kinds not in _SIMPLE + _EXTENDED:
        return None
    is_extended = kinds in _EXTENDED
    coded = bytes(view[starts[int(is_extended)] :])
    width, height = ctypes.c_int(), ctypes.c_int()
    if not library.get_info(coded, len(coded), ctypes.byref(width), ctypes.byref(height)):
        return None
    size = width.value, height.value
    has_alpha = b"ALPH" in kinds
    if b"VP8L" in kinds:
        has_alpha = bool(int.from_bytes(coded[9:13], "little") & _LOSSLESS_ALPHA)
    if is_extended:
        canvas = struct.pack("<4sII", b"VP8X", 10, _ALPHA * has_alpha)
        canvas += b"".join((side - 1).to_bytes(3, "little") for side in size)
        if view[starts[0] : starts[1]] != canvas:
            return None
    return StillImage(coded, "RGBA" if has_alpha else "RGB", size)


def decode_still_image(still: StillImage) -> Image.Image | None:
    """Decodes a still image.

    Args:
        still: from `read_still_image`.

    Returns:
        An image of its mode and size, not rotated; None if Pillow must decode it.

    Raises:
        MemoryError: if no memory is left.
    """
    library = _library()
    image = Image.new(still.mode, still.size, None)  # the pixels are not set
    with samples_of(image) as address:
        if library is None or address is None:
            return None
        row_bytes = 4 * image.width
        num_bytes = row_bytes * image.height
        # The GIL is released meanwhile.
        decoded = library.decode_into(still.coded, len(still.coded), address, num_bytes, row_bytes)
    return None if decoded is None else image


def _chunks(view: memoryview) -> tuple[list[bytes], list[int]]:
    """Returns the kinds of the first chunks, one more than a still image has, and their starts."""
    kinds, starts = list[bytes](), list[int]()
    position = _HEADER_BYTES
    while position + 8 <= len(view) and len(kinds) < _MOST_CHUNKS:
        kind, length = struct.unpack_from("<4sI", view, position)
        kinds.append(kind)
        starts.append(position)
        position += 8 + length + length % 2
    return kinds, starts
