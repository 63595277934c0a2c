"""Decoded images of any mode -> 8-bit RGB: transparency on white, deep samples scaled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from model.images.deep_samples import shallow_to_uint8
from model.images.errors import UnsupportedImage

# Conversions with large intermediate arrays take about this many pixels at a time, in whole rows.
_STRIP_PIXELS = 1 << 20
_WHITE = (255, 255, 255, 255)


def to_rgb(image: Image.Image, format_name: str) -> Image.Image:
    """Converts any mode to 8-bit RGB: transparency on white, deep samples scaled, not clipped.

    Args:
        image: as Pillow decodes it.
        format_name: of its file.

    Raises:
        UnsupportedImage: for CIE L*a*b*.
    """
    if image.mode.startswith("I;16"):
        return _deep_to_rgb(image)
    if format_name == "BMP" and image.mode == "RGBA" and not _has_opaque_pixels(image):
        # Most programs that write 32-bit BMP leave the fourth byte 0 and ignore it when reading.
        return image.convert("RGB")
    if image.mode in {"La", "RGBa"} or image.has_transparency_data:
        return _blend_on_white(image)
    if image.mode == "RGB":
        return image
    if image.mode == "LAB":
        raise UnsupportedImage("images in CIE L*a*b* colours are not supported; send RGB")
    return image.convert("RGB")


def are_equal(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images of the same size and mode have the same pixels."""
    return all(
        strip.tobytes() == other.crop((0, top, strip.width, top + strip.height)).tobytes()
        for strip, top in _strips(one)
    )


def on_white(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """Returns an RGB image that is white outside the frame: left, top, right and bottom."""
    if frame == (0, 0, *image.size):
        return image
    framed = Image.new("RGB", image.size, _WHITE[:3])
    framed.paste(image.crop(frame), frame[:2])
    return framed


def whiten(image: Image.Image, low_bytes: Image.Image, colour: tuple[int, ...]) -> None:
    """Makes the pixels of a 16-bit RGB colour white, in place.

    Args:
        image: the high bytes of the samples.
        low_bytes: their low bytes.
        colour: three samples of 16 bits.
    """
    for strip, top in _strips(image):
        low = np.asarray(low_bytes.crop((0, top, strip.width, top + strip.height)))
        samples = np.asarray(strip).astype(np.uint16) << 8 | low
        is_colour = Image.fromarray((samples == colour).all(axis=-1))
        image.paste(_WHITE[:3], (0, top), is_colour)


def _has_opaque_pixels(image: Image.Image) -> bool:
    return image.getchannel("A").getextrema() != (0, 0)


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Yields the image from top to bottom in strips of whole rows, each with its first row."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height))), top


def _blend_on_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for strip, top in _strips(image):
        with_alpha = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, _WHITE)
        rgb.paste(Image.alpha_composite(white, with_alpha).convert("RGB"), (0, top))
    return rgb


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Converts 16-bit grey to RGB; samples of the transparent value become white."""
    rgb = Image.new("RGB", image.size)
    transparent = image.info.get("transparency")
    for strip, top in _strips(image):
        samples = np.asarray(strip)
        grey = shallow_to_uint8(samples, 16)
        if transparent is not None:
            grey[samples == transparent] = 255
        rgb.paste(Image.fromarray(grey).convert("RGB"), (0, top))
    return rgb
