"""Encoded image -> RGB pixels, for serving, detect, drawing, training and evaluation.

The format is recognised by the file's content, never by a name or a header of the client. Files
that are too large are refused by their header. The EXIF orientation is applied, every colour
mode becomes 8-bit RGB, and `decode_image` resizes by the model's rule. Pillow decodes and releases
the GIL meanwhile, so that requests are decoded in threads.
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
from PIL import ExifTags, Image, UnidentifiedImageError

from model.geometry import resized_size
from model.images.errors import DetectionError, ImageTooLarge, InvalidImage, UnsupportedImage
from model.images.formats import identify_format
from model.images.pixel_memory import store_images_in_one_block
from model.images.resize import resize_bilinear
from model.images.structure import check_structure, open_in_memory

# Peak of decoding in any mode: the decoder's buffers, the image, and its converted or rotated copy,
# or two copies for resizing. WebP's decoder keeps two canvases and returns a third.
_MEMORY_BYTES_PER_PIXEL = {"JPEG": 12, "PNG": 12, "WEBP": 20, "BMP": 12, "TIFF": 12, "GIF": 12}
# Conversions with large intermediate arrays take about this many pixels at a time, in whole rows.
_STRIP_PIXELS = 1 << 20
_UINT8_MAX = 255
_UINT16_MAX = 65535
_WHITE = (255, 255, 255, 255)
# Modes of more than 8 bits per sample, in which Pillow opens 16-bit PNG and 16/32-bit TIFF.
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image, checked before a pixel is decoded."""

    max_bytes: int  # of the encoded file
    max_pixels: int  # width x height, by the file's header
    max_jpeg_scans: int = 64  # a progressive JPEG has about 10; each passes over all pixels


class NeedsMemory(Exception):
    """Decoding the image needs more memory than the caller granted; it may retry with more."""

    def __init__(self, num_bytes: int) -> None:
        """Keeps the number of bytes that decoding needs."""
        super().__init__(num_bytes)
        self.num_bytes = num_bytes


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
        format: of the file: "JPEG", "PNG", "WEBP", "BMP", "TIFF" or "GIF".
    """

    pixels: npt.NDArray[np.uint8]
    original_size: tuple[int, int]
    format: str


def decode_image(
    data: bytes | memoryview,
    config: InputRule,
    limits: ImageLimits,
    max_memory_bytes: int | None = None,
    place: Callable[[tuple[int, int]], npt.NDArray[np.uint8]] | None = None,
) -> DecodedImage:
    """Decodes an encoded image and resizes it for the model.

    Args:
        data: the whole file.
        config: the model's input rule.
        limits: checked by the byte count and the header, before decoding.
        max_memory_bytes: that decoding may use; None for no limit.
        place: returns the array [h, w, 3] to write the resized pixels to, given (h, w); None for
            a new array.

    Returns:
        The resized pixels and the size that boxes refer to.

    Raises:
        InvalidImage: for an empty, broken or truncated file, or bytes that are not an image.
        UnsupportedImage: for a file of another kind, which the message names.
        ImageTooLarge: for too many bytes or pixels.
        NeedsMemory: if `max_memory_bytes` is too small, by the header, before decoding.
    """
    image, name = open_upright(data, limits, max_memory_bytes)
    width, height = image.size
    new_size = resized_size(height, width, config.shortest_side, config.longest_side)
    pixels = resize_bilinear(image, *new_size, None if place is None else place(new_size))
    return DecodedImage(pixels=pixels, original_size=(height, width), format=name)


def open_upright(
    data: bytes | memoryview, limits: ImageLimits, max_memory_bytes: int | None = None
) -> tuple[Image.Image, str]:
    """Decodes an encoded image at its full size, with its EXIF orientation applied.

    Args:
        data: the whole file.
        limits: checked by the byte count and the header, before decoding.
        max_memory_bytes: that decoding may use; None for no limit.

    Returns:
        The image in mode RGB, with transparency blended on white, and the name of its format.

    Raises:
        InvalidImage: for an empty, broken or truncated file, or bytes that are not an image.
        UnsupportedImage: for a file of another kind, which the message names.
        ImageTooLarge: for too many bytes or pixels.
        NeedsMemory: if `max_memory_bytes` is too small, by the header, before decoding.
    """
    check_byte_count(len(data), limits)
    name = identify_format(bytes(data[:4096]), len(data))
    check_structure(name, data, limits.max_jpeg_scans)
    prepare_pillow()
    with _decoder_errors_as_invalid_image(name):
        image: Image.Image = Image.open(open_in_memory(name, data), formats=(name,))
        _check_pixel_count(image.size, limits)
        num_bytes = image.width * image.height * _MEMORY_BYTES_PER_PIXEL[name]
        if max_memory_bytes is not None and num_bytes > max_memory_bytes:
            raise NeedsMemory(num_bytes)
        image.load()
        # The size of GIF and TIFF images can change while they load.
        _check_pixel_count(image.size, limits)
        return _to_rgb(_apply_orientation(image)), name


def check_byte_count(num_bytes: int, limits: ImageLimits) -> None:
    """Refuses a file by its length, which an adapter may know before it has the bytes.

    Raises:
        InvalidImage: for an empty file.
        ImageTooLarge: for more than `limits.max_bytes`.
    """
    if num_bytes == 0:
        raise InvalidImage("the image is empty (0 bytes)")
    if num_bytes > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {num_bytes} bytes; at most {limits.max_bytes} are accepted"
        )


def _check_pixel_count(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"the image has no pixels: its header says {width} x {height}")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {width * height} pixels; "
            f"at most {limits.max_pixels} are accepted"
        )


@contextmanager
def _decoder_errors_as_invalid_image(name: str) -> Iterator[None]:
    """Re-raises the errors of a decoder as `InvalidImage`.

    Pillow parses files in Python. On a broken one it raises OSError, SyntaxError, struct.error,
    KeyError, ZeroDivisionError and others, hence `except Exception`.
    """
    try:
        yield
    except (DetectionError, NeedsMemory, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
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


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Applies the EXIF or XMP orientation; an image with broken EXIF stays as it is."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # for the reasons given in `_decoder_errors_as_invalid_image`
        return image
    if not isinstance(orientation, int) or orientation not in _TRANSPOSE_BY_ORIENTATION:
        return image
    return image.transpose(_TRANSPOSE_BY_ORIENTATION[orientation])


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to 8-bit RGB: transparency on white, deep samples scaled, not clipped."""
    if image.mode in _DEEP_MODES:
        return _deep_to_rgb(image)
    if image.mode in {"La", "RGBa"} or image.has_transparency_data:
        return _blend_on_white(image)
    if image.mode == "RGB":
        return image
    if image.mode == "LAB":
        raise UnsupportedImage("images in CIE L*a*b* colours are not supported; send RGB")
    return image.convert("RGB")


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
    """Converts grey samples of more than 8 bits to RGB.

    16-bit integers are divided by 257 (65535 -> 255). For wider integers and floats no white is
    defined: the smallest usual one (1 for floats, then 255, then 65535) that is not below the
    brightest sample is used. If none is, or samples are negative, darkest to brightest is scaled
    to 0..255.
    """
    rgb = Image.new("RGB", image.size)
    black, white = 0.0, 0.0
    if image.mode in {"I", "F"}:
        black, white = _black_and_white(image)
    for strip, top in _strips(image):
        samples = np.asarray(strip)
        if samples.dtype.kind == "u":
            # The exact rounding of x / 257 in integers.
            wide = samples.astype(np.uint32)
            grey = ((wide * _UINT8_MAX + _UINT16_MAX // 2) // _UINT16_MAX).astype(np.uint8)
        else:
            scaled = (_finite(samples) - black) * (_UINT8_MAX / max(white - black, 1e-30))
            grey = np.rint(scaled).astype(np.uint8)
        rgb.paste(Image.fromarray(grey).convert("RGB"), (0, top))
    return rgb


def _black_and_white(image: Image.Image) -> tuple[float, float]:
    """Returns the samples of an int32 or float32 image that become 0 and 255."""
    extremes = [
        (float(samples.min()), float(samples.max()))
        for samples in (_finite(np.asarray(strip)) for strip, _ in _strips(image))
    ]
    darkest, brightest = min(low for low, _ in extremes), max(high for _, high in extremes)
    whites = (1, _UINT8_MAX, _UINT16_MAX) if image.mode == "F" else (_UINT16_MAX,)
    white = next((limit for limit in whites if darkest >= 0 and brightest <= limit), None)
    return (darkest, brightest) if white is None else (0.0, float(white))


def _finite(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
