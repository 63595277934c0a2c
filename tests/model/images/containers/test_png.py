"""Chunks of PNG: metadata matters neither to the pixels nor to whether they can be read."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.images.containers import png
from service.errors import InvalidImage, UnsupportedImage
from tests.support.decoder_images import corners, encode, upright
from tests.support.image_pieces import (
    PNG_SIGNATURE,
    after_png_header,
    png_chunk,
    png_file,
)

PLAIN = encode(corners(), "PNG")
PIXELS = np.asarray(corners())
BIG_TEXT = b"Comment\x00" + b"x" * 1_500_000
ICC = b"icc\x00\x00" + zlib.compress(bytes(1_300_000), 0)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", BIG_TEXT),
        png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(80_000_000))),
        png_chunk(
            b"iTXt", b"XML:com.adobe.xmp\x00\x01\x00\x00\x00" + zlib.compress(bytes(1 << 24))
        ),
        png_chunk(b"iCCP", ICC),
        png_chunk(b"iCCP", b"icc\x00\x00no zlib data"),
        png_chunk(b"tEXt", b"a comment", checksum=0),
        png_chunk(b"zTXt", b"Raw profile type exif\x00\x00no zlib data"),
        png_chunk(b"tEXt", b"Raw profile type exif\x00\nexif\n 4\nno hexadecimal"),
        *(
            png_chunk(kind, body)
            for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"iTXt", b"zTXt", b"eXIf")
            for body in (b"", b"\x00")
        ),
        png_chunk(b"bKGD", bytes(99)),
        png_chunk(b"hIST", b""),
        png_chunk(b"tRNS", b""),
        png_chunk(b"tRNS", b"\x00"),
        png_chunk(b"tRNS", b"\x00\xff\x00\x00\x00\x00", checksum=0),
        png_chunk(b"acTL", b""),
        png_chunk(b"fcTL", b""),
        png_chunk(b"zZzZ", bytes(1000)),
    ],
    ids=lambda chunk: f"{chunk[4:8].decode()}, {len(chunk)} bytes",
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_metadata_does_not_matter(chunk: bytes, place: str) -> None:
    data = (
        after_png_header(PLAIN, chunk) if place == "before" else PLAIN[:-12] + chunk + PLAIN[-12:]
    )
    np.testing.assert_array_equal(upright(data), PIXELS)


@pytest.mark.parametrize("cut", [1, 4, 8, 11, 12])
def test_the_end_may_be_missing(cut: int) -> None:
    np.testing.assert_array_equal(upright(PLAIN[:-cut]), PIXELS)


@pytest.mark.parametrize("cut", [30, 40])
def test_pixels_may_not_be_missing(cut: int) -> None:
    with pytest.raises(InvalidImage, match="truncated"):
        upright(PLAIN[:-cut])


def test_pixels_in_many_chunks() -> None:
    start = PLAIN.index(b"IDAT") - 4
    compressed = zlib.compress(zlib.decompress(PLAIN[start + 8 : -16]), 0)
    chunks = b"".join(png_chunk(b"IDAT", compressed[at : at + 1]) for at in range(len(compressed)))
    empty = png_chunk(b"IDAT", b"")
    data = PLAIN[:start] + empty + chunks + empty + PLAIN[-12:]
    np.testing.assert_array_equal(upright(data), PIXELS)


def test_the_number_of_chunks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_MAX_CHUNKS", 100)
    upright(after_png_header(PLAIN, png_chunk(b"tEXt", b"") * 90))
    with pytest.raises(InvalidImage, match="more than 100 chunks"):
        upright(after_png_header(PLAIN, png_chunk(b"tEXt", b"") * 100))


def test_a_broken_header_or_palette_is_refused() -> None:
    for data in (
        PLAIN[:29] + b"\x00\x00\x00\x00" + PLAIN[33:],
        PNG_SIGNATURE + PLAIN[33:],
        png_file((2, 1), 8, 3, b"\x00\x00\x01"),
        png_file((2, 1), 8, 3, b"\x00\x00\x01", png_chunk(b"PLTE", bytes(6), checksum=0)),
    ):
        with pytest.raises(InvalidImage, match=r"header|IHDR|PLTE|palette"):
            upright(data)


@pytest.mark.parametrize(
    ("kind", "message"), [(b"CgBI", "Apple"), (b"ABCD", "'ABCD'"), (b"\x00\x01\x02\x03", "chunk")]
)
def test_chunks_that_must_be_known_are_named(kind: bytes, message: str) -> None:
    with pytest.raises(UnsupportedImage, match=message):
        upright(after_png_header(PLAIN, png_chunk(kind, b"")))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_compared_at_its_own_depth(bits: int) -> None:
    largest = (1 << bits) - 1
    width = max(8 // bits, 1)
    row = (np.full(2 if bits == 16 else 1, 255, np.uint8)).tobytes()  # samples of the largest value
    transparent = png_file(
        (width, 1), bits, 0, b"\x00" + bytes(len(row)), png_chunk(b"tRNS", bytes(2))
    )
    opaque = png_file(
        (width, 1), bits, 0, b"\x00" + bytes(len(row)), png_chunk(b"tRNS", b"\x00\x01")
    )
    assert (upright(transparent) == 255).all()
    assert (upright(opaque) == 0).all()
    bright = png_file(
        (width, 1), bits, 0, b"\x00" + row, png_chunk(b"tRNS", largest.to_bytes(2, "big"))
    )
    assert (upright(bright) == 255).all()


def test_a_transparent_colour_of_16_bits() -> None:
    row = b"\x00" + bytes.fromhex("ffff 8080 0000")
    chunk = png_chunk(b"tRNS", row[1:])
    assert upright(png_file((1, 1), 16, 2, row, chunk)).tolist() == [[[255, 255, 255]]]
    other = png_chunk(b"tRNS", bytes.fromhex("ffff 8080 0001"))
    assert upright(png_file((1, 1), 16, 2, row, other)).tolist() == [[[255, 128, 0]]]


def _exif_6() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


@pytest.mark.parametrize("where", ["eXIf", "eXIf after the pixels", "tEXt", "zTXt"])
def test_exif_is_found_in_every_chunk_that_may_have_it(where: str) -> None:
    text = b"\nexif\n    1\n" + _exif_6().hex().encode() + b"\n"
    if where.startswith("eXIf"):
        chunk = png_chunk(b"eXIf", _exif_6())
    elif where == "tEXt":
        chunk = png_chunk(b"tEXt", b"Raw profile type exif\x00" + text)
    else:
        chunk = png_chunk(b"zTXt", b"Raw profile type exif\x00\x00" + zlib.compress(text))
    data = PLAIN[:-12] + chunk + PLAIN[-12:] if "after" in where else after_png_header(PLAIN, chunk)
    np.testing.assert_array_equal(upright(data), np.rot90(PIXELS, -1))


def test_only_the_first_exif_of_text_chunks_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    inflated: list[bytes] = []

    def inflate(data: bytes) -> bytes:
        inflated.append(data)
        return b""

    monkeypatch.setattr(png, "_inflated", inflate)
    chunk = png_chunk(b"zTXt", b"Raw profile type exif\x00\x00" + zlib.compress(bytes(1 << 20)))
    xmp = png_chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x01\x00\x00\x00" + zlib.compress(b"<x/>"))
    upright(after_png_header(PLAIN, chunk * 100, xmp * 100))
    assert len(inflated) == 2


def test_compressed_xmp_is_read() -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<a tiff:Orientation="3"/>', zip=True)
    np.testing.assert_array_equal(
        upright(encode(corners(), "PNG", pnginfo=info)), PIXELS[::-1, ::-1]
    )


def test_an_animation_gives_its_default_image() -> None:
    encoded = io.BytesIO()
    corners().save(
        encoded,
        "PNG",
        save_all=True,
        default_image=True,
        append_images=[corners().rotate(180), corners().transpose(Image.Transpose.FLIP_LEFT_RIGHT)],
    )
    np.testing.assert_array_equal(upright(encoded.getvalue()), PIXELS)


# Rows of 8 that a file lacks.
@pytest.mark.parametrize("missing", [1, 7, 8])
@pytest.mark.parametrize(
    ("kind", "depth", "samples"),
    [
        ("grey", 1, 1),
        ("grey", 8, 1),
        ("grey", 16, 1),
        ("RGB", 8, 3),
        ("RGB", 16, 3),
        ("palette", 2, 1),
        ("palette", 8, 1),
        ("grey and alpha", 8, 2),
        ("RGBA", 8, 4),
    ],
)
@pytest.mark.parametrize("fill", [0, 255])
def test_an_image_whose_data_end_early_is_refused(
    kind: str, depth: int, samples: int, missing: int, fill: int
) -> None:
    colour = {"grey": 0, "RGB": 2, "palette": 3, "grey and alpha": 4, "RGBA": 6}[kind]
    row = b"\x00" + bytes([fill]) * -(-5 * depth * samples // 8)
    palette = png_chunk(b"PLTE", bytes(range(3)) * 256) if kind == "palette" else b""

    def file(rows: int, *, parts: int = 1) -> bytes:
        header = struct.pack(">2I5B", 5, 8, depth, colour, 0, 0, 0)
        pixels = zlib.compress(row * rows)
        step = -(-len(pixels) // parts)
        chunks = [png_chunk(b"IDAT", pixels[at : at + step]) for at in range(0, len(pixels), step)]
        return b"".join(
            (PNG_SIGNATURE, png_chunk(b"IHDR", header), palette, *chunks, png_chunk(b"IEND", b""))
        )

    for parts in (1, 3, 100):
        assert upright(file(8, parts=parts)).shape == (8, 5, 3)
        with pytest.raises(InvalidImage, match="truncated"):
            upright(file(8 - missing, parts=parts))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (5, 3), (8, 8), (9, 17)])
@pytest.mark.parametrize("fill", [0, 255])
def test_an_interlaced_image_whose_data_end_early_is_refused(
    size: tuple[int, int], fill: int
) -> None:
    width, height = size
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 1)
    rows = b""
    for x, y, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):  # fmt: skip
        columns = len(range(x, width, across))
        rows += (
            (b"\x00" + bytes([fill]) * 3 * columns) * len(range(y, height, down)) * (columns > 0)
        )

    def file(rows: bytes) -> bytes:
        pixels = png_chunk(b"IDAT", zlib.compress(rows))
        return PNG_SIGNATURE + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")

    assert (upright(file(rows)) == fill).all()
    with pytest.raises(InvalidImage, match="truncated"):
        upright(file(rows[:-1]))
