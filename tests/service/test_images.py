"""Bytes -> pixels: formats, colour modes, orientations, limits and broken files."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.config import ModelConfig
from model.geometry import resized_size
from service.errors import DetectionError, ImageTooLarge, InvalidImage, UnsupportedImage
from service.formats import recognise
from service.images import ImageLimits, decode_image, open_upright

# Pillow tells of odd metadata by warnings; a service that reads strangers' files hears many.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMITS = ImageLimits(max_bytes=1 << 22, max_pixels=2_000_000)
CONFIG = ModelConfig(shortest_side=48, longest_side=64)
UINT8 = npt.NDArray[np.uint8]


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, form, **options)
    return encoded.getvalue()


def upright(data: bytes) -> UINT8:
    return np.asarray(open_upright(data, LIMITS)[0])


def corners() -> Image.Image:
    """40 x 20: red, green, blue and yellow corners."""
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("lime", (20, 0, 40, 10))
    picture.paste("blue", (0, 10, 20, 20))
    picture.paste("yellow", (20, 10, 40, 20))
    return picture


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
    plain = corners().resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(plain))


def test_a_large_photo_is_resized_over_all_its_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    decoded = decode_image(encode(Image.fromarray(noise), "PNG"), CONFIG, LIMITS)
    height, width = decoded.pixels.shape[:2]
    plain = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(plain))


def test_a_memoryview_is_as_good_as_bytes() -> None:
    data = encode(corners(), "PNG")
    one, other = (decode_image(kind, CONFIG, LIMITS) for kind in (data, memoryview(data)))
    np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    stored_as = {  # how a camera held that way stores the picture
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
def test_broken_exif_does_not_spoil_a_photo(exif: bytes) -> None:
    data = encode(corners(), "JPEG", exif=exif)
    assert decode_image(data, CONFIG, LIMITS).original_size == (20, 40)


def test_black_and_white_and_grey() -> None:
    assert upright(encode(Image.new("1", (8, 8), 1), "PNG")).tolist()[0][0] == [255, 255, 255]
    assert upright(encode(Image.new("L", (8, 8), 77), "PNG")).tolist()[0][0] == [77, 77, 77]


@pytest.mark.parametrize(
    ("picture", "form"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP"),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "TIFF"),
        (Image.new("LA", (8, 8), (0, 0)), "PNG"),
    ],
)
def test_what_is_transparent_is_white(picture: Image.Image, form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    assert upright(encode(picture, form, **options)).min() == 255


def test_half_transparent_red_is_pink() -> None:
    data = encode(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG")
    assert upright(data)[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(form: str) -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(0, (0, 0, 4, 8))
    pixels = upright(encode(picture, form, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 7].tolist() == [0, 0, 255]


def test_palette_with_alpha_for_each_colour() -> None:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    pixels = upright(encode(picture, "PNG", transparency=bytes([0, 255])))
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_an_rgb_png_is_white() -> None:
    data = encode(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert upright(data).min() == 255


def test_cmyk_jpeg_has_its_colours() -> None:
    # Pillow writes CMYK as Adobe does, inverted, and marks it; red is no cyan, all the rest.
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    assert np.abs(upright(data)[8, 8].astype(int) - [255, 0, 0]).max() <= 6


def test_cmyk_tiff_has_its_colours() -> None:
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF")
    assert upright(data)[8, 8].tolist() == [255, 0, 0]


def test_ycbcr_tiff_has_its_colours() -> None:
    data = encode(Image.new("RGB", (16, 16), "red").convert("YCbCr"), "TIFF")
    assert np.abs(upright(data)[8, 8].astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(form: str) -> None:
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16).repeat(4, axis=0)
    pixels = upright(encode(Image.fromarray(deep), form))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (pixels == pixels[..., :1]).all()


def test_16_bit_colour_png_is_scaled() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    row = b"\x00" + struct.pack(">3H", 65535, 32896, 0) * 4
    data = b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">2I5B", 4, 2, 16, 2, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(row * 2)),
            chunk(b"IEND", b""),
        )
    )
    assert upright(data)[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 32768, 65535]], dtype=np.int32), [0, 128, 255]),
        (np.array([[-10, 0, 10]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], dtype=np.float32), [0, 1, 255]),
        (np.array([[0, np.nan, 1e30]], dtype=np.float32), [0, 0, 255]),
        (np.array([[7, 7, 7]], dtype=np.float32) * 1e6, [0, 0, 0]),
    ],
)
def test_deep_tiff_is_brought_to_8_bits(
    samples: npt.NDArray[np.generic], expected: list[int]
) -> None:
    assert upright(encode(Image.fromarray(samples), "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert np.abs(upright(data)[8, 8].astype(int) - [255, 0, 0]).max() <= 2


def test_lab_colours_are_refused_by_name() -> None:
    data = encode(Image.new("LAB", (8, 8)), "TIFF")
    with pytest.raises(UnsupportedImage, match=r"L\*a\*b\*"):
        decode_image(data, CONFIG, LIMITS)


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


def test_pixels_above_pillows_own_limit_are_a_matter_of_our_setting() -> None:
    data = encode(Image.new("1", (20_000, 9_500)), "PNG")
    picture, _ = open_upright(data, replace(LIMITS, max_pixels=200_000_000))
    assert picture.size == (20_000, 9_500)


@pytest.mark.parametrize("size", [(100_000, 1), (1, 60_000), (1, 1), (2, 3)])
def test_thin_and_tiny_images_keep_a_pixel_on_each_side(size: tuple[int, int]) -> None:
    decoded = decode_image(encode(Image.new("RGB", size, "teal"), "PNG"), CONFIG, LIMITS)
    height, width = decoded.pixels.shape[:2]
    assert min(height, width) >= 1
    assert max(height, width) <= CONFIG.longest_side
    assert decoded.original_size == (size[1], size[0])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- a --><svg></svg>", "SVG"),
        (b"<?xml version='1.0'?><note/>", "XML"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00", "HEIF"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", "AVIF"),
        (b"\x00\x00\x00\x1cftypisom\x00\x00\x00\x00", "MP4"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "WAV"),
        (b"PK\x03\x04\x14\x00", "ZIP"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b'{"image": "abc"}', "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo=", "data: URL"),
        (b"https://example.org/a.jpg", "web address"),
        (b"BMW is a maker of cars and not of images", "text"),
        ("Grüße aus Köln, ohne Bild".encode(), "text"),
        (("x" + "ä" * 4096).encode(), "text"),
    ],
)
def test_a_foreign_file_is_unsupported_and_named(data: bytes, named: str) -> None:
    with pytest.raises(UnsupportedImage, match=named):
        decode_image(data, CONFIG, LIMITS)


def test_bytes_of_no_known_kind_are_invalid() -> None:
    with pytest.raises(InvalidImage, match="not an image"):
        decode_image(bytes(range(128, 256)), CONFIG, LIMITS)


def test_no_decoder_but_the_recognised_one_sees_the_bytes() -> None:
    # A PCX file would open in Pillow; it is not on our list.
    data = encode(Image.new("RGB", (8, 8)), "PCX")
    with pytest.raises(InvalidImage):
        decode_image(data, CONFIG, LIMITS)


@given(st.binary(max_size=64))
def test_any_bytes_are_recognised_or_refused(head: bytes) -> None:
    with contextlib.suppress(InvalidImage, UnsupportedImage):
        assert recognise(head, len(head)) in {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"}


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
