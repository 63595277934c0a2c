"""Pieces of image files, for tests that change or build files byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png_file(
    size: tuple[int, int], bits: int, colour: int, rows: bytes, *chunks: bytes, interlace: int = 0
) -> bytes:
    """A PNG with chunks between its header and its pixels; `rows` with filter bytes."""
    header = struct.pack(">2I5B", *size, bits, colour, 0, 0, interlace)
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"".join(
        (PNG_SIGNATURE, png_chunk(b"IHDR", header), *chunks, pixels, png_chunk(b"IEND", b""))
    )


def after_png_header(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def after_jpeg_start(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments after its start."""
    return data[:2] + b"".join(segments) + data[2:]


def tiff_file(
    entries: Mapping[int, tuple[int, Sequence[int] | bytes]],
    pixels: bytes,
    *,
    order: str = "<",
    is_big: bool = False,
) -> bytes:
    """A TIFF of one directory, with its pixels at offset 16.

    Args:
        entries: type and values (or their bytes) by tag.
        pixels: what follows the header.
        order: of the bytes, "<" or ">".
        is_big: writes a BigTIFF.
    """
    offset_format = order + ("Q" if is_big else "I")
    inline = struct.calcsize(offset_format)
    at = 16 + len(pixels) + len(pixels) % 2
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "H", 43 if is_big else 42)
    head += struct.pack(order + "HHQ", 8, 0, at) if is_big else struct.pack(order + "I", at)
    count_format = order + ("Q" if is_big else "H")
    values_at = at + struct.calcsize(count_format) + len(entries) * (4 + 2 * inline) + inline
    directory, values = struct.pack(count_format, len(entries)), b""
    for tag, (kind, content) in sorted(entries.items()):
        form = order + {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}[kind]
        size = struct.calcsize(form)
        raw = (
            content
            if isinstance(content, bytes)
            else b"".join(struct.pack(form, value) for value in content)
        )
        directory += struct.pack(order + "HH", tag, kind)
        directory += struct.pack(offset_format, len(raw) // size)
        if len(raw) <= inline:
            directory += raw.ljust(inline, b"\x00")
        else:
            directory += struct.pack(offset_format, values_at + len(values))
            values += raw + bytes(len(raw) % 2)
    body = head.ljust(16, b"\x00") + pixels + bytes(len(pixels) % 2)
    return body + directory + bytes(inline) + values
