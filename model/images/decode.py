"""Encoded image -> RGB pixels, for serving, detect, drawing, training and evaluation.

The format is recognised by the file's content, never by a name or a header of the client. Files
that are too large are refused by their header, metadata is removed (`model.images.containers`), and
Pillow decodes the rest. The orientation is applied, every colour mode becomes 8-bit RGB, and
`decode_image` resizes by the model's rule.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from model.geometry import resized_size
from model.images import heif_decoders, libtiff
from model.images.colours import are_equal, on_white, to_rgb, whiten
from model.images.containers.bmp import read_bmp
from model.images.containers.gif import read_gif
from model.images.containers.heif import read_heif
from model.images.containers.jpeg import read_jpeg
from model.images.containers.png import read_png
from model.images.containers.source import ImageSource, open_in_memory
from model.images.containers.tiff import TiffImage, read_tiff
from model.images.containers.tiff_layout import unsupported_kind
from model.images.containers.webp import read_webp
from model.images.errors import DetectionError, InvalidImage, UnsupportedImage
from model.images.fast_jpeg import decode_jpeg
from model.images.formats import identify_format
from model.images.limits import (
    Cost,
    CostsMore,
    ImageLimits,
    check_byte_count,
    check_cost,
    check_pixel_count,
)
from model.images.orientation import apply_orientation
from model.images.pixel_memory import store_images_in_one_block
from model.images.resize import resize_bilinear
from model.images.tiff_samples import decode_samples

__all__ = [
    "Cost",
    "CostsMore",
    "DecodedImage",
    "ImageLimits",
    "InputRule",
    "check_byte_count",
    "decode_image",
    "open_upright",
    "prepare_pillow",
]

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
# Peak of decoding in any mode: the decoder's buffers, the image, and its converted or rotated copy,
# or two copies for resizing. WebP's decoder keeps two canvases and returns a third.
_MEMORY_BYTES_PER_PIXEL = {
    "JPEG": 12,
    "PNG": 12,
    "WEBP": 20,
    "BMP": 12,
    "GIF": 12,
    "AVIF": 16,
    "HEIF": 16,
}
# Seconds of one core per pixel and per byte, measured with photographs and noise; others take less.
_SECONDS = {
    "JPEG": (6e-9, 12e-9),
    "PNG": (20e-9, 5e-9),
    "WEBP": (20e-9, 60e-9),
    "BMP": (5e-9, 0.0),
    "GIF": (6e-9, 5e-9),
    "AVIF": (15e-9, 80e-9),
    "HEIF": (25e-9, 80e-9),
}
_PART_OF_A_PASS = 0.1  # that each scan of a progressive JPEG adds
_OUT_OF_MEMORY = ("Memory allocation error", "Out of memory")  # of libheif and libavif
_COPY_BYTES_PER_PIXEL = 4  # of an image that is kept to be compared


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


def decode_image(
    data: bytes | memoryview,
    config: InputRule,
    limits: ImageLimits,
    granted: Cost | None = None,
    place: Callable[[tuple[int, int]], npt.NDArray[np.uint8]] | None = None,
) -> DecodedImage:
    """Decodes an encoded image and resizes it for the model.

    Args:
        data: the whole file.
        config: the model's input rule.
        limits: checked by the byte count and the header, before decoding.
        granted: what decoding may take; None for no limit.
        place: returns the array [h, w, 3] to write the resized pixels to, given (h, w); None for
            a new array.

    Returns:
        The resized pixels and the size that boxes refer to.

    Raises:
        InvalidImage: for an empty, broken or truncated file, or bytes that are not an image.
        UnsupportedImage: for a file of another kind, which the message names.
        ImageTooLarge: for too many bytes or pixels.
        CostsMore: if decoding takes more, by the header; raised before decoding.
    """
    image, name = open_upright(data, limits, granted)
    width, height = image.size
    new_size = resized_size(height, width, config.shortest_side, config.longest_side)
    pixels = resize_bilinear(image, *new_size, None if place is None else place(new_size))
    return DecodedImage(pixels=pixels, original_size=(height, width), format=name)


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
    check_byte_count(len(data), limits)
    name = identify_format(bytes(data[:4096]), len(data))
    prepare_pillow()
    with _decoder_errors_as_invalid_image(name):
        if name == "TIFF":
            tiff = read_tiff(data, limits)
            check_cost(tiff.cost, granted)
            return apply_orientation(_decode_tiff(tiff), tiff.orientation), name
        source = _READERS[name](data, limits)
        name = source.format or name
        image = _decode(name, source, limits, granted)
        if source.crop is not None:
            image = image.crop(source.crop)
        rgb = to_rgb(apply_orientation(image, source.orientation), name)
        return (rgb if source.frame is None else on_white(rgb, source.frame)), name


def _decode(
    name: str, source: ImageSource, limits: ImageLimits, granted: Cost | None
) -> Image.Image:
    """Decodes a file without its metadata."""
    first, *others = source.endings or (b"",)
    image = _open(name, source.data, first)
    check_pixel_count(image.size, limits)
    bytes_per_pixel = _MEMORY_BYTES_PER_PIXEL[name] + _COPY_BYTES_PER_PIXEL * bool(others)
    num_pixels = max(image.width * image.height, source.coded_pixels)
    per_pixel, per_byte = _SECONDS[name]
    seconds = num_pixels * per_pixel + len(source.data) * per_byte
    seconds *= 1 + _PART_OF_A_PASS * (source.passes - 1)
    check_cost(Cost(num_pixels * bytes_per_pixel, seconds), granted)
    if name == "JPEG" and not source.endings:
        fast = decode_jpeg(source.data, image.mode, image.size)
        if fast is not None:
            return fast
    image.load()
    # The size of a GIF or a HEIC image can change while it loads.
    check_pixel_count(image.size, limits)
    if source.check_pixels is not None:
        source.check_pixels(image)
    if not all(are_equal(image, _open(name, source.data, ending)) for ending in others):
        raise InvalidImage(f"the {name} image cannot be decoded: it is truncated")
    if source.transparent is not None:
        whiten(image, _low_bytes(name, source), source.transparent)
    return image


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


@cache
def prepare_pillow() -> tuple[ModuleType, ...]:
    """Registers the accepted decoders and disables Pillow's own pixel limit.

    That limit is one per process and warns before it refuses; `ImageLimits` replaces it. Importing
    the plugins by name keeps Pillow from loading all others.
    """
    from PIL import (  # noqa: PLC0415
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    Image.MAX_IMAGE_PIXELS = None
    # Pillow's own reader of uncompressed TIFF takes subsampled and 16-bit planes for other pixels.
    TiffImagePlugin.READ_LIBTIFF = True
    libtiff.silence()
    heif_decoders.register()
    store_images_in_one_block()
    # Odd metadata in a client's image is not worth a line in the log.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    return (
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )
