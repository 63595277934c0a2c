"""Encoded image -> RGB pixels, for serving, detect, drawing, training and evaluation.

The format is recognised by the file's content, never by a name or a header of the client. Files
that are too large are refused by their header, metadata is removed (`model.images.containers`), and
Pillow decodes the rest. The orientation is applied, every colour mode becomes 8-bit RGB, and
`decode_image` resizes by the model's rule.

Before that resize, a large JPEG can be decoded to a fraction of its size, in less time
(`jpeg_decoding`: "scaled"). It keeps at least twice the width and height of the model's input,
since the resize averages; pixels differ slightly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from model.geometry import resized_size
from model.images.colours import are_equal, on_white, to_rgb, whiten
from model.images.containers.bmp import read_bmp
from model.images.containers.gif import read_gif
from model.images.containers.heif import read_heif
from model.images.containers.jpeg import read_jpeg, without_end
from model.images.containers.png import read_png
from model.images.containers.source import ImageSource, open_in_memory
from model.images.containers.tiff import TiffImage, read_tiff
from model.images.containers.tiff_layout import unsupported_kind
from model.images.containers.webp import read_webp
from model.images.costs import decoding_cost
from model.images.errors import DetectionError, InvalidImage, UnsupportedImage
from model.images.fast_jpeg import BLOCK, EndsEarly, choose_samples, decode_jpeg
from model.images.fast_webp import decode_still_image, read_still_image
from model.images.formats import identify_format
from model.images.limits import (
    Cost,
    CostsMore,
    ImageLimits,
    check_byte_count,
    check_cost,
    check_pixel_count,
)
from model.images.orientation import apply_orientation, upright_box, upright_size
from model.images.pillow_setup import prepare_pillow
from model.images.resize import Box, resize_bilinear
from model.images.tiff_samples import decode_samples

__all__ = [
    "Cost",
    "CostsMore",
    "DecodedImage",
    "ImageLimits",
    "InputRule",
    "JpegDecoding",
    "UprightImage",
    "check_byte_count",
    "decode_image",
    "open_for_model",
    "open_upright",
    "prepare_pillow",
]

JpegDecoding = Literal["exact", "scaled"]
_Read = Callable[[bytes | memoryview, ImageLimits], ImageSource]
_READERS: dict[str, _Read] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "BMP": read_bmp,
    "GIF": read_gif,
    "AVIF": read_heif,
    "HEIF": read_heif,
}
_OVERSAMPLING = 2  # sides of a scaled JPEG per side of the model's input, at least
_OUT_OF_MEMORY = ("Memory allocation error", "Out of memory")  # of libheif and libavif


class InputRule(Protocol):
    """The input rule of a model: `ModelConfig` and others that have these fields, in pixels."""

    @property
    def shortest_side(self) -> int:
        """The length that the shorter side is resized to."""

    @property
    def longest_side(self) -> int:
        """The longest that the longer side may become."""


@dataclass(frozen=True)
class DecodedImage:
    """An image, ready for the engine.

    Attributes:
        pixels: uint8 [h, w, 3] RGB, resized by the model's rule, C-contiguous.
        original_size: (H, W) of the whole image after EXIF rotation.
        format: of the file, by Pillow's name; see `identify_format`.
    """

    pixels: npt.NDArray[np.uint8]
    original_size: tuple[int, int]
    format: str


class UprightImage(NamedTuple):
    """A decoded image with its EXIF orientation applied."""

    image: Image.Image  # mode RGB; smaller than in the file if it was scaled
    format: str  # of the file, by Pillow's name
    original_size: tuple[int, int]  # (H, W) of the whole image after EXIF rotation
    box: Box | None = None  # the part of `image` that has pixels; None: all of it


def decode_image(  # noqa: PLR0913, PLR0917 - of an image
    data: bytes | memoryview,
    config: InputRule,
    limits: ImageLimits,
    granted: Cost | None = None,
    place: Callable[[tuple[int, int]], npt.NDArray[np.uint8]] | None = None,
    jpeg_decoding: JpegDecoding = "exact",
) -> DecodedImage:
    """Decodes an encoded image and resizes it for the model.

    Args:
        data: the whole file.
        config: the model's input rule.
        limits: checked by the byte count and the header, before decoding.
        granted: what decoding may take; None for no limit.
        place: returns the array [h, w, 3] to write the resized pixels to, given (h, w); None for
            a new array.
        jpeg_decoding: "scaled" decodes large JPEGs to a fraction of their size.

    Returns:
        The resized pixels and the size that boxes refer to.

    Raises:
        InvalidImage: for an empty, broken or truncated file, or bytes that are not an image.
        UnsupportedImage: for a file of another kind, which the message names.
        ImageTooLarge: for too many bytes or pixels.
        CostsMore: if decoding takes more, by the header; raised before decoding.
    """
    upright = open_for_model(data, config, limits, granted, jpeg_decoding)
    size = resized_size(*upright.original_size, config.shortest_side, config.longest_side)
    out = None if place is None else place(size)
    pixels = resize_bilinear(upright.image, *size, out, upright.box)
    return DecodedImage(pixels, upright.original_size, upright.format)


def open_for_model(
    data: bytes | memoryview,
    config: InputRule,
    limits: ImageLimits,
    granted: Cost | None = None,
    jpeg_decoding: JpegDecoding = "exact",
) -> UprightImage:
    """Decodes an encoded image as `decode_image` does, but does not resize it.

    Args:
        data: the whole file.
        config: the model's input rule.
        limits: checked by the byte count and the header, before decoding.
        granted: what decoding may take; None for no limit.
        jpeg_decoding: "scaled" decodes large JPEGs to a fraction of their size.

    Returns:
        The image, with transparency blended on white.

    Raises:
        DetectionError, CostsMore: as `decode_image`.
    """
    rule = config if jpeg_decoding == "scaled" else None
    return _open_upright(data, limits, granted, rule)


def open_upright(
    data: bytes | memoryview, limits: ImageLimits, granted: Cost | None = None
) -> tuple[Image.Image, str]:
    """Decodes an encoded image at its full size, with its EXIF orientation applied.

    Args:
        data: the whole file.
        limits: checked by the byte count and the header, before decoding.
        granted: what decoding may take; None for no limit.

    Returns:
        The image in mode RGB, with transparency blended on white, and the name of its format.

    Raises:
        InvalidImage: for an empty, broken or truncated file, or bytes that are not an image.
        UnsupportedImage: for a file of another kind, which the message names.
        ImageTooLarge: for too many bytes or pixels.
        CostsMore: if decoding takes more, by the header; raised before decoding.
    """
    upright = _open_upright(data, limits, granted, None)
    return upright.image, upright.format


def _open_upright(
    data: bytes | memoryview,
    limits: ImageLimits,
    granted: Cost | None,
    scaled_for: InputRule | None,
) -> UprightImage:
    """Decodes an image; a JPEG scaled for an input rule, if there is one."""
    check_byte_count(len(data), limits)
    name = identify_format(bytes(data[:4096]), len(data))
    prepare_pillow()
    with _decoder_errors_as_invalid_image(name):
        if name == "TIFF":
            tiff = read_tiff(data, limits)
            check_cost(tiff.cost, granted)
            upright = apply_orientation(_decode_tiff(tiff), tiff.orientation)
            return UprightImage(upright, name, upright.size[::-1])
        source = _READERS[name](data, limits)
        name = source.format or name
        image, scaled = _decode(name, source, limits, granted, scaled_for)
        if source.crop is not None:
            image = image.crop(source.crop)
        rgb = to_rgb(apply_orientation(image, source.orientation), name)
        if source.frame is not None:
            rgb = on_white(rgb, source.frame)
        if scaled is None:
            return UprightImage(rgb, name, rgb.size[::-1])
        part = scaled.width * scaled.samples / BLOCK, scaled.height * scaled.samples / BLOCK
        box = upright_box(image.size, part, source.orientation)
        width, height = upright_size((scaled.width, scaled.height), source.orientation)
        return UprightImage(rgb, name, (height, width), box)


class _Scaled(NamedTuple):
    """How a JPEG was scaled."""

    width: int  # by its header
    height: int
    samples: int  # see `choose_samples`


def _decode(
    name: str,
    source: ImageSource,
    limits: ImageLimits,
    granted: Cost | None,
    scaled_for: InputRule | None,
) -> tuple[Image.Image, _Scaled | None]:
    """Decodes a file without its metadata.

    Returns:
        The image as stored, and how it was scaled, if it was.
    """
    if name == "WEBP":
        still = _decode_still_webp(source, limits, granted)
        if still is not None:
            return still, None
    first, *others = source.endings or (b"",)
    image = _open(name, source.data, first)
    check_pixel_count(image.size, limits)
    cost = decoding_cost(
        name,
        max(image.width * image.height, source.coded_pixels),
        len(source.data),
        passes=source.passes,
        # A CMYK image is decoded once more, at an eighth of its size.
        times=1 + max(len(others), name == "JPEG" and image.mode == "CMYK"),
        seconds_per_pixel=source.seconds_per_pixel,
    )
    check_cost(cost, granted)
    if name == "JPEG" and not source.endings:
        samples = BLOCK if scaled_for is None else _samples(image.size, scaled_for)
        try:
            fast = decode_jpeg(source.data, image.mode, image.size, samples)
        except EndsEarly:
            return _decode(name, without_end(source, limits), limits, granted, scaled_for)
        if fast is not None:
            return fast, None if samples == BLOCK else _Scaled(*image.size, samples)
    image.load()
    # The size of a GIF or a HEIC image can change while it loads.
    check_pixel_count(image.size, limits)
    if source.check_pixels is not None:
        source.check_pixels(image)
    if not all(are_equal(image, _open(name, source.data, ending)) for ending in others):
        raise InvalidImage(f"the {name} image cannot be decoded: it is truncated")
    if source.transparent is not None:
        whiten(image, _low_bytes(name, source), source.transparent)
    return image, None


def _decode_still_webp(
    source: ImageSource, limits: ImageLimits, granted: Cost | None
) -> Image.Image | None:
    """Decodes a WebP as `_decode` does; returns None if Pillow must decode it."""
    still = read_still_image(source.data)
    if still is None:
        return None
    check_pixel_count(still.size, limits)
    width, height = still.size
    num_bytes = len(source.data)
    check_cost(decoding_cost("WEBP, still", width * height, num_bytes), granted)
    return decode_still_image(still)


def _samples(size: tuple[int, int], rule: InputRule) -> int:
    """The scale to decode a JPEG at, given the width and height of its header."""
    width, height = size
    resized = resized_size(height, width, rule.shortest_side, rule.longest_side)
    return choose_samples(size, (_OVERSAMPLING * resized[1], _OVERSAMPLING * resized[0]))


def _low_bytes(name: str, source: ImageSource) -> Image.Image:
    """Decodes the low bytes of 16-bit RGB samples, of which Pillow reads only the high ones."""
    image = _open(name, source.data)
    assert isinstance(image, ImageFile)
    [tile] = image.tile
    # The bytes are in big-endian order: the second of a sample is taken for its high one.
    image.tile = [tile._replace(args="RGB;16L")]
    image.load()
    return image


def _open(name: str, data: bytes | memoryview, ending: bytes = b"") -> Image.Image:
    whole = bytes(data) + ending if ending else data
    return Image.open(open_in_memory(name, whole), formats=(name,))


def _decode_tiff(tiff: TiffImage) -> Image.Image:
    """Decodes a TIFF to RGB, as it is stored."""
    try:
        image = _open("TIFF", tiff.data)
        if tiff.layout.is_read_as_bytes:
            return decode_samples(image, tiff.layout)
        image.load()
    except UnidentifiedImageError:
        raise unsupported_kind(tiff.layout) from None
    return to_rgb(image, "TIFF")


@contextmanager
def _decoder_errors_as_invalid_image(name: str) -> Iterator[None]:
    """Re-raises the errors of a decoder as `InvalidImage` or `UnsupportedImage`.

    Pillow parses files in Python. On a broken one it raises OSError, SyntaxError, struct.error,
    KeyError, ZeroDivisionError and others, hence `except Exception`.
    """
    try:
        yield
    except (DetectionError, CostsMore, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if any(each in reason for each in _OUT_OF_MEMORY):
            raise MemoryError(reason) from error
        if reason.startswith("Unsupported"):
            raise UnsupportedImage(
                f"this kind of {name} is not supported: {reason}; send 8-bit RGB"
            ) from error
        if isinstance(error, UnidentifiedImageError):
            reason = "its header is broken"
        elif "truncated" in reason.lower():
            reason = f"it is truncated ({reason})"
        raise InvalidImage(f"the {name} image cannot be decoded: {reason}") from error
