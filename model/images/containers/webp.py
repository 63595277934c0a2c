"""WebP: the chunks that the pixels of the first frame need (RFC 9649)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from model.images.containers.source import ImageSource
from model.images.errors import InvalidImage
from model.images.limits import ImageLimits
from model.images.orientation import orientation_of

_HEADER_BYTES = 12
_MAX_CHUNKS = 1 << 17
_ICC_EXIF_AND_XMP_FLAGS = 0x20 | 0x08 | 0x04
_PIXEL_CHUNKS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})


def read_webp(data: bytes | memoryview, _limits: ImageLimits) -> ImageSource:
    """Returns a WebP without its metadata and without frames after the first.

    Args:
        data: the whole file; a broken one is left to the decoder to refuse.

    Raises:
        InvalidImage: for too many chunks.
    """
    kept: dict[bytes, bytes] = {}  # the first chunk of each kind
    metadata: dict[bytes, bytes] = {}
    for kind, chunk in _chunks(memoryview(data)):
        if kind in _PIXEL_CHUNKS:
            kept.setdefault(kind, chunk)
        elif kind in {b"EXIF", b"XMP "}:
            metadata.setdefault(kind, chunk[8:])
    if b"VP8X" in kept:
        extended = bytearray(kept[b"VP8X"])
        if len(extended) > 8:  # noqa: PLR2004 - the flags are its ninth byte
            extended[8] &= ~_ICC_EXIF_AND_XMP_FLAGS & 0xFF
        kept[b"VP8X"] = bytes(extended)
    orientation = orientation_of(metadata.get(b"EXIF"), metadata.get(b"XMP "))
    body = b"".join((b"WEBP", *kept.values()))
    return ImageSource(b"RIFF" + struct.pack("<I", len(body)) + body, orientation)


def _chunks(view: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and whole bytes of each chunk, with its padding.

    Raises:
        InvalidImage: for too many chunks, and one that is cut off.
    """
    if len(view) < _HEADER_BYTES:
        return
    view = view[: 8 + struct.unpack_from("<I", view, 4)[0]]
    position = _HEADER_BYTES
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(view):
            return
        kind, length = struct.unpack_from("<4sI", view, position)
        end = position + 8 + length
        if end > len(view) and kind in _PIXEL_CHUNKS:
            raise InvalidImage("the WEBP image cannot be decoded: it is truncated")
        yield kind, bytes(view[position:end]) + bytes(length % 2)
        position = end + length % 2
    raise InvalidImage(f"the WebP image has more than {_MAX_CHUNKS} chunks")
