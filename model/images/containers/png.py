"""PNG: the chunks that the pixels need (https://www.w3.org/TR/png-3/)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from model.images.containers.source import ImageSource
from model.images.errors import InvalidImage, UnsupportedImage
from model.images.limits import ImageLimits
from model.images.orientation import orientation_of

_SIGNATURE_BYTES = 8
_MAX_CHUNKS = 1 << 17  # of 4 KiB each, the smallest that is usual, half a GiB
_HEADER_BYTES = 13
_CHUNK_START_BYTES, _CHECKSUM_BYTES = 8, 4  # length and type; CRC-32 of type and body
_GREY, _RGB, _PALETTE = 0, 2, 3
_DEEP_RGB = (16, _RGB)
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}  # of a pixel, by colour type
# Of the passes of an interlaced image: the first column and row, and the steps between them.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Of comparing 16-bit samples with the transparent colour, which takes a second decoding.
_SECONDS_PER_COMPARED_PIXEL = 180e-9
_INFLATED_BYTES = 1 << 20  # at once
_TRANSPARENCY_FORMATS = {_GREY: ">H", _RGB: ">3H"}
_ANCILLARY_BIT = 0x20  # of the first byte of a chunk's type
_EXIF_KEYS = frozenset({b"Raw profile type exif", b"Raw profile type APP1"})
_XMP_KEY = b"XML:com.adobe.xmp"
_MAX_TEXT_BYTES = 1 << 20  # of inflated metadata


@dataclass
class _Chunks:
    """The chunks of a file that matter here."""

    header: bytes = b""
    palette: bytes = b""
    transparency: bytes | None = None
    pixels: list[bytes | memoryview] = field(default_factory=list)  # whole IDAT chunks
    exif: bytes | memoryview | None = None
    text_exif: bytes | None = None  # as ImageMagick writes it
    xmp: bytes | memoryview | None = None


def read_png(data: bytes | memoryview, _limits: ImageLimits) -> ImageSource:
    """Returns a PNG without its metadata and, if it is animated, its default image only.

    As in libpng, an ancillary chunk that is broken is left out. A file may end after its pixels.

    Raises:
        InvalidImage: for too many chunks, and a broken header or palette.
        UnsupportedImage: for an unknown chunk that a decoder must know.
    """
    view = memoryview(data)
    chunks = _Chunks()
    for kind, body, position in _chunks(view):
        _read_chunk(chunks, kind, body, view[position:])
    if len(chunks.header) != _HEADER_BYTES:
        raise InvalidImage("the PNG image cannot be decoded: its header is broken")
    bit_depth, colour = chunks.header[8], chunks.header[9]
    if colour == _PALETTE and not chunks.palette:
        raise InvalidImage("the PNG image cannot be decoded: its palette is missing")
    parts: list[bytes | memoryview] = [view[:_SIGNATURE_BYTES], _chunk(b"IHDR", chunks.header)]
    if colour == _PALETTE:
        parts.append(_chunk(b"PLTE", chunks.palette))
    transparency = _transparency(chunks, bit_depth, colour)
    deep_colour = None
    if transparency is not None and (bit_depth, colour) == _DEEP_RGB:
        deep_colour = struct.unpack(">3H", transparency)  # Pillow compares only 8 bits
    elif transparency is not None:
        parts.append(_chunk(b"tRNS", transparency))
    parts += [*chunks.pixels, _chunk(b"IEND", b"")]
    exif = chunks.text_exif if chunks.exif is None else chunks.exif
    orientation = orientation_of(exif, chunks.xmp)
    return ImageSource(
        b"".join(parts),
        orientation,
        transparent=deep_colour,
        seconds_per_pixel=0.0 if deep_colour is None else _SECONDS_PER_COMPARED_PIXEL,
        check_pixels=partial(_check_pixels, header=chunks.header, pixels=chunks.pixels),
    )


def _chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yields type, body (cut off where the file ends) and position of each chunk."""
    position = _SIGNATURE_BYTES
    for _ in range(_MAX_CHUNKS):
        if position + _CHUNK_START_BYTES > len(view):
            return
        length, kind = struct.unpack_from(">I4s", view, position)
        if kind == b"IEND":
            return
        start = position + _CHUNK_START_BYTES
        yield kind, view[start : start + length], position
        position = start + length + _CHECKSUM_BYTES
    raise InvalidImage(f"the PNG image has more than {_MAX_CHUNKS} chunks")


def _read_chunk(chunks: _Chunks, kind: bytes, body: memoryview, rest: memoryview) -> None:
    """Keeps what a chunk says.

    Args:
        chunks: to which it is added.
        kind: its type.
        body: its body, cut off where the file ends.
        rest: the file from its first byte.
    """
    whole = rest[: _CHUNK_START_BYTES + len(body) + _CHECKSUM_BYTES]
    if kind == b"IDAT":
        chunks.pixels.append(whole if _is_complete(whole, body) else _chunk(kind, body))
    elif kind in {b"IHDR", b"PLTE"}:
        if not _has_its_checksum(whole, body):
            raise InvalidImage(
                f"the PNG image cannot be decoded: its {kind.decode()} chunk is broken"
            )
        if kind == b"IHDR":
            chunks.header = chunks.header or bytes(body)
        else:
            chunks.palette = chunks.palette or bytes(body[: len(body) // 3 * 3])
    elif kind == b"tRNS":
        if chunks.transparency is None and _has_its_checksum(whole, body):
            chunks.transparency = bytes(body)
    elif kind == b"eXIf":
        chunks.exif = chunks.exif or body
    elif kind in {b"iTXt", b"tEXt", b"zTXt"}:
        _read_text(chunks, kind, body)
    elif kind == b"CgBI":
        raise UnsupportedImage("Apple's CgBI variant of PNG is not supported; send a standard PNG")
    elif not kind[0] & _ANCILLARY_BIT:
        raise UnsupportedImage(f"PNG images with a chunk {str(kind)[1:]} are not supported")


def _is_complete(whole: memoryview, body: memoryview) -> bool:
    (length,) = struct.unpack_from(">I", whole)
    return bool(len(body) == length and len(whole) == _CHUNK_START_BYTES + length + _CHECKSUM_BYTES)


def _has_its_checksum(whole: memoryview, body: memoryview) -> bool:
    if not _is_complete(whole, body):
        return False
    return bytes(whole[-_CHECKSUM_BYTES:]) == _checksum(whole[4:-_CHECKSUM_BYTES])


def _chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, _checksum(kind + bytes(body))))


def _checksum(kind_and_body: bytes | memoryview) -> bytes:
    return struct.pack(">I", zlib.crc32(kind_and_body))


def _check_pixels(image: Image.Image, header: bytes, pixels: Sequence[bytes | memoryview]) -> None:
    """Refuses an image whose compressed data end, without an error, before its last row.

    Pillow leaves missing rows at zero, so an image whose last row is not zero is complete.

    Args:
        image: decoded, as it is stored.
        header: the body of IHDR.
        pixels: whole IDAT chunks.

    Raises:
        InvalidImage: if rows are missing.
    """
    width, height, bit_depth, colour, _, _, interlaced = struct.unpack(">2I5B", header)
    if not interlaced and any(image.crop((0, height - 1, width, height)).tobytes()):
        return
    needed = 0
    for left, top, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            needed += rows * (1 + (columns * bit_depth * _SAMPLES[colour] + 7) // 8)
    if not _inflates_to(pixels, needed):
        raise InvalidImage("the PNG image cannot be decoded: it is truncated (rows are missing)")


def _inflates_to(pixels: Sequence[bytes | memoryview], num_bytes: int) -> bool:
    """Whether the data of these IDAT chunks have as many bytes, uncompressed."""
    inflater = zlib.decompressobj()
    for chunk in pixels:
        data: bytes | memoryview = memoryview(chunk)[_CHUNK_START_BYTES:-_CHECKSUM_BYTES]
        while data and num_bytes > 0:
            try:
                num_bytes -= len(inflater.decompress(data, _INFLATED_BYTES))
            except zlib.error:
                return False
            data = inflater.unconsumed_tail
    return num_bytes <= len(inflater.flush())


def _transparency(chunks: _Chunks, bit_depth: int, colour: int) -> bytes | None:
    """Returns the body of tRNS for Pillow, which compares it with samples scaled to 8 bits.

    Samples of 16 bits stay as they are. A chunk of the wrong length does not count.
    """
    raw = chunks.transparency
    if raw is None or colour == _PALETTE:
        return raw or None
    form = _TRANSPARENCY_FORMATS.get(colour)
    if form is None or len(raw) != struct.calcsize(form):
        return None
    samples = struct.unpack(form, raw)
    if bit_depth < 8:  # noqa: PLR2004
        scale = 255 // ((1 << bit_depth) - 1)
        samples = tuple((sample & ((1 << bit_depth) - 1)) * scale for sample in samples)
    return struct.pack(form, *samples)


def _read_text(chunks: _Chunks, kind: bytes, body: memoryview) -> None:
    """Keeps the first EXIF and XMP that text chunks have."""
    key, _, rest = bytes(body[:80]).partition(b"\x00")
    text = body[len(key) + 1 :]
    if kind == b"iTXt" and key == _XMP_KEY and chunks.xmp is None:
        is_compressed = rest[:1] == b"\x01"
        chunks.xmp = _inflated(_after_strings(text[2:])) if is_compressed else text
    elif kind in {b"tEXt", b"zTXt"} and key in _EXIF_KEYS and chunks.text_exif is None:
        profile = _inflated(text[1:]) if kind == b"zTXt" else bytes(text[:_MAX_TEXT_BYTES])
        chunks.text_exif = _raw_profile(profile)


def _after_strings(text: memoryview) -> bytes:
    """Returns what follows the language and the translated key of iTXt."""
    return bytes(text).split(b"\x00", 2)[-1]


def _inflated(data: bytes | memoryview) -> bytes:
    """Inflates up to a limit; what cannot be inflated is left out."""
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Decodes ImageMagick's form of EXIF: an empty line, name, length, hexadecimal lines."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
