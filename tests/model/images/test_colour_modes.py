"""Colour modes, depths and frames -> 8-bit RGB."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from model.images.decode import decode_image
from service.errors import UnsupportedImage
from tests.support.decoder_images import CONFIG, LIMITS, encode, upright


def test_black_and_white_and_grey() -> None:
    assert upright(encode(Image.new("1", (8, 8), 1), "PNG")).tolist()[0][0] == [255, 255, 255]
    assert upright(encode(Image.new("L", (8, 8), 77), "PNG")).tolist()[0][0] == [77, 77, 77]


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP"),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "TIFF"),
        (Image.new("LA", (8, 8), (0, 0)), "PNG"),
    ],
)
def test_transparent_pixels_become_white(image: Image.Image, form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    assert upright(encode(image, form, **options)).min() == 255


def test_half_transparent_red_is_pink() -> None:
    data = encode(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG")
    assert upright(data)[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(form: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 4, 8))
    pixels = upright(encode(image, form, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 7].tolist() == [0, 0, 255]


def test_palette_with_alpha_for_each_colour() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    pixels = upright(encode(image, "PNG", transparency=bytes([0, 255])))
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_an_rgb_png_is_white() -> None:
    data = encode(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert upright(data).min() == 255


def test_cmyk_jpeg_has_its_colours() -> None:
    # Pillow writes CMYK inverted, with a marker, as Adobe does. Red is (0, 255, 255, 0).
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
def test_deep_tiff_is_scaled_to_8_bits(
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
