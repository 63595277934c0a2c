"""Bytes -> pixels: formats, colour modes, orientations, limits and broken files."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.geometry import resized_size
from model.images.decode import decode_image, open_upright
from model.images.resize import resize_bilinear
from service.errors import DetectionError, ImageTooLarge, InvalidImage
from tests.support.decoder_images import CONFIG, LIMITS, corners, encode, upright

# Pillow warns about odd metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_each_format_gives_its_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    data = encode(corners(), form, **options)
    decoded = decode_image(data, CONFIG, LIMITS)
    assert decoded.format == form
    assert decoded.original_size == (20, 40)
    difference = upright(data).astype(int) - np.asarray(corners()).astype(int)
    assert np.abs(difference[2:8, 2:18]).max() <= 3


def test_pixels_are_resized_by_the_models_rule() -> None:
    decoded = decode_image(encode(corners(), "PNG"), CONFIG, LIMITS)
    height, width = resized_size(20, 40, CONFIG.shortest_side, CONFIG.longest_side)
    assert decoded.pixels.shape == (height, width, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable
    np.testing.assert_array_equal(decoded.pixels, resize_bilinear(corners(), height, width))


def test_a_large_image_is_resized_from_all_its_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    decoded = decode_image(encode(Image.fromarray(noise), "PNG"), CONFIG, LIMITS)
    height, width = decoded.pixels.shape[:2]
    plain = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    assert (
        np.abs(decoded.pixels.astype(int) - np.asarray(plain)).max() <= 1
    )  # see model.images.resize


def test_a_memoryview_is_decoded_like_bytes() -> None:
    data = encode(corners(), "PNG")
    one, other = (decode_image(kind, CONFIG, LIMITS) for kind in (data, memoryview(data)))
    np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    stored_as = {  # how a camera held that way stores the image
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = corners() if stored_as is None else corners().transpose(stored_as)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(stored, form, exif=exif, **options)
    assert decode_image(data, CONFIG, LIMITS).original_size == (20, 40)
    pixels = upright(data).astype(int)
    for row, column in ((4, 8), (4, 32), (16, 8), (16, 32)):
        assert np.abs(pixels[row, column] - np.asarray(corners())[row, column]).max() < 40


def test_an_impossible_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    data = encode(corners(), "JPEG", exif=exif)
    assert decode_image(data, CONFIG, LIMITS).original_size == (20, 40)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
def test_an_image_with_broken_exif_is_decoded(exif: bytes) -> None:
    data = encode(corners(), "JPEG", exif=exif)
    assert decode_image(data, CONFIG, LIMITS).original_size == (20, 40)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_invalid_and_named(form: str, part: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    with pytest.raises(InvalidImage, match=form):
        decode_image(data[: int(len(data) * part)], CONFIG, LIMITS)


def test_a_header_alone_is_invalid() -> None:
    for start in (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00"):
        with pytest.raises(InvalidImage):
            decode_image(start, CONFIG, LIMITS)


def test_an_empty_file_is_invalid() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        decode_image(b"", CONFIG, LIMITS)


def test_too_many_bytes_are_refused() -> None:
    data = encode(corners(), "PNG")
    with pytest.raises(ImageTooLarge, match=f"{len(data)} bytes"):
        decode_image(data, CONFIG, replace(LIMITS, max_bytes=len(data) - 1))
    decode_image(data, CONFIG, replace(LIMITS, max_bytes=len(data)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_too_many_pixels_are_refused_before_decoding(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(corners(), form)

    def decode(*_: object) -> None:
        raise AssertionError("decoded an image that is too large")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageTooLarge, match="40 x 20 = 800 pixels"):
        decode_image(data, CONFIG, replace(LIMITS, max_pixels=799))


def test_a_bomb_is_refused_without_a_warning() -> None:
    row = b"\x00" * (1 + 50_000 // 8)
    header = struct.pack(">2I5B", 50_000, 50_000, 1, 0, 0, 0, 0)
    ihdr, idat = b"IHDR" + header, b"IDAT" + zlib.compress(row * 1000, 9)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (ihdr, idat, b"IEND")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLarge, match="2500000000 pixels"):
            decode_image(data, CONFIG, LIMITS)


def test_pillows_own_pixel_limit_does_not_apply() -> None:
    data = encode(Image.new("1", (20_000, 9_500)), "PNG")
    image, _ = open_upright(data, replace(LIMITS, max_pixels=200_000_000))
    assert image.size == (20_000, 9_500)


@pytest.mark.parametrize("size", [(100_000, 1), (1, 60_000), (1, 1), (2, 3)])
def test_thin_and_tiny_images_keep_a_pixel_on_each_side(size: tuple[int, int]) -> None:
    decoded = decode_image(encode(Image.new("RGB", size, "teal"), "PNG"), CONFIG, LIMITS)
    height, width = decoded.pixels.shape[:2]
    assert min(height, width) >= 1
    assert max(height, width) <= CONFIG.longest_side
    assert decoded.original_size == (size[1], size[0])


def test_only_the_decoder_of_the_recognised_format_is_used() -> None:
    # Pillow would open a PCX file; it is not an accepted format.
    data = encode(Image.new("RGB", (8, 8)), "PCX")
    with pytest.raises(InvalidImage):
        decode_image(data, CONFIG, LIMITS)


SEEDS = [
    encode(corners(), "JPEG"),
    encode(corners(), "JPEG", progressive=True),
    encode(corners(), "PNG"),
    encode(corners().quantize(4), "PNG"),
    encode(corners(), "WEBP"),
    encode(corners(), "BMP"),
    encode(corners(), "TIFF"),
    encode(corners(), "TIFF", compression="tiff_lzw"),
    encode(corners(), "TIFF", compression="jpeg"),
    encode(corners(), "GIF", save_all=True, append_images=[corners().rotate(180)]),
]


@settings(max_examples=600, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_a_damaged_image_is_decoded_or_refused(
    seed: bytes, edits: list[tuple[float, int]], cut: float | None
) -> None:
    damaged = bytearray(seed)
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    data = bytes(damaged) if cut is None else bytes(damaged[: int(cut * len(damaged))])
    try:
        decoded = decode_image(data, CONFIG, LIMITS)
    except DetectionError as error:
        assert error.detail
    else:
        assert min(decoded.pixels.shape) >= 1


@pytest.mark.parametrize("size", [(1_000_001, 1), (1, 40_000_000)])
def test_a_side_of_more_than_a_million_pixels_is_refused_by_the_header(
    size: tuple[int, int],
) -> None:
    data = bytearray(encode(Image.new("RGB", (2, 2)), "PNG"))
    data[16:24] = struct.pack(">2I", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImageTooLarge, match="1000000"):
        decode_image(bytes(data), CONFIG, replace(LIMITS, max_pixels=10**9))
