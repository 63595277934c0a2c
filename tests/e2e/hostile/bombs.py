"""Small files that are expensive to decode, as a hostile client could send them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, form, **options)
    return encoded.getvalue()


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    *,
    colour_type: int = 2,
    rows: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A black PNG; `rows` may be fewer than in its header. Deflate compresses it about 1000 : 1."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    deflate = zlib.compressobj(1)
    row = bytes(1 + width * _CHANNELS[colour_type])
    packed = [deflate.compress(row) for _ in range(height if rows is None else rows)]
    body = png_chunk(b"IHDR", header) + extra
    body += png_chunk(b"IDAT", b"".join(packed) + deflate.flush())
    return PNG_MAGIC + body + png_chunk(b"IEND")


def png_text_bomb() -> bytes:
    """A PNG with text chunks of 50 MB each when decompressed."""
    text = b"a\0\0" + zlib.compress(bytes(50 << 20), 9)
    return png(8, 8, extra=png_chunk(b"zTXt", text) * 20)


def png_profile_bomb() -> bytes:
    return png(8, 8, extra=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20), 9)))


def png_itxt_bomb() -> bytes:
    text = b"a\0\1\0\0\0" + zlib.compress(bytes(50 << 20), 9)
    return png(8, 8, extra=png_chunk(b"iTXt", text) * 20)


def jpeg(width: int = 64, height: int = 64, **options: object) -> bytes:
    return encode(Image.new("RGB", (width, height), "red"), "JPEG", **options)


def jpeg_of_many_segments(num_bytes: int) -> bytes:
    data = jpeg()
    return data[:2] + b"\xff\xfe\x00\x02" * (num_bytes // 4) + data[2:]


def jpeg_of_fill_bytes(num_bytes: int) -> bytes:
    data = jpeg()
    return data[:2] + b"\xff" * num_bytes + data[2:]


def jpeg_of_many_scans(scans: int, width: int = 64, height: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    image = Image.new("L", (width, height), 99)
    data = encode(image, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def png_of_many_chunks(num_bytes: int, kind: bytes = b"abCd") -> bytes:
    return png(8, 8, extra=png_chunk(kind) * (num_bytes // 12))


def gif(width: int = 8, height: int = 8) -> bytes:
    return encode(Image.new("P", (width, height)), "GIF")


def gif_of_many_blocks(num_bytes: int) -> bytes:
    data = gif()
    palette_end = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 128 else 0)
    comment = b"!\xfe" + b"\x01a" * (num_bytes // 2) + b"\0"
    return data[:palette_end] + comment + data[palette_end:]


def bmp_run_lengths(width: int, height: int) -> bytes:
    """A BMP whose rows end after their first pixel: four bytes for a row of any width."""
    palette = bytes(1024)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    offset = 14 + len(header) + len(palette)
    rows = b"\x01\x01\x00\x00" * height + b"\x00\x01"
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + palette + rows


def tiff(
    entries: Iterable[tuple[int, int, int, int]], tail: bytes = b"", next_ifd: int = 0
) -> bytes:
    """A little-endian TIFF of one directory; the tail begins at byte 1000.

    Args:
        entries: (tag, type, count, value or offset) of each entry.
        tail: data that the entries point to.
        next_ifd: offset of the next directory; 0: none.
    """
    rows = [struct.pack("<HHLL", *entry) for entry in entries]
    ifd = struct.pack("<H", len(rows)) + b"".join(rows) + struct.pack("<L", next_ifd)
    return (b"II*\0" + struct.pack("<L", 8) + ifd).ljust(1000, b"\0") + tail


def grey_tiff(width: int, height: int, strips: int, rows_per_strip: int, **more: int) -> bytes:
    offsets = struct.pack("<L", 900) * strips
    return tiff(
        [
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, strips, 1000 if strips > 1 else 900),
            (277, 3, 1, 1),
            (278, 4, 1, rows_per_strip),
            (279, 4, strips, 1000 if strips > 1 else width * rows_per_strip % 2**32),
        ],
        tail=offsets,
        **more,
    )


def exif_bomb(entries: int, num_bytes: int) -> bytes:
    """An EXIF block whose entries all point to the same large value."""
    rows = [struct.pack("<HHLL", 40000 + i, 7, num_bytes, 8) for i in range(entries)]
    ifd = struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)
    return b"II*\0" + struct.pack("<L", 8) + ifd + bytes(num_bytes)


def exif_loop() -> bytes:
    """An EXIF directory that points to itself, as its sub-directory and as the next one."""
    entry = struct.pack("<HHLL", 0x8769, 4, 1, 8)
    return b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", 1) + entry + struct.pack("<L", 8)


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP of two small frames on a canvas of any size."""
    small = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = bytearray(encode(small[0], "WEBP", save_all=True, append_images=small[1:]))
    data[24:27] = struct.pack("<I", width - 1)[:3]
    data[27:30] = struct.pack("<I", height - 1)[:3]
    return bytes(data)
