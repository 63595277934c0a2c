"""Bytes -> pixels: the first stage of a request behind its admission, run in worker threads.

Knows a format by its content (never by a name or a header of the client), refuses what is too
large by the header alone, applies the EXIF orientation, brings every colour mode to 8-bit RGB and
resizes by the model's own rule. Pillow does the decoding and gives up the GIL while it does.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from model.config import ModelConfig
from model.geometry import resized_size
from model.images.errors import DetectionError, ImageTooLarge, InvalidImage, UnsupportedImage
from model.images.formats import recognise
from model.images.pixel_memory import keep_pictures_whole
from model.images.resize import resize_bilinear
from model.images.structure import check_structure, open_in_memory

# What decoding takes at its peak, whatever the mode: the decoder's own buffers, the picture, and
# its copy in RGB or turned upright, or two for resizing. WebP's decoder keeps two canvases and
# hands out a third.
_MEMORY_BYTES_PER_PIXEL = {"JPEG": 12, "PNG": 12, "WEBP": 20, "BMP": 12, "TIFF": 12, "GIF": 12}
# Pictures that need more than a plain conversion get it so many pixels at a time, in whole rows.
_STRIP_PIXELS = 1 << 20
_UINT8_MAX = 255
_UINT16_MAX = 65535
_WHITE = (255, 255, 255, 255)
# Modes that hold more than 8 bits a sample, as Pillow opens 16-bit PNG and 16/32-bit TIFF.
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_TURN_BY_ORIENTATION = {
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
    """What an image may weigh; both are checked before a pixel is decoded."""

    max_bytes: int  # of the encoded file
    max_pixels: int  # width x height, by the file's own header
    max_jpeg_scans: int = 64  # a progressive JPEG has about 10; each is a walk over all pixels


class NeedsMemory(Exception):
    """An image that takes more memory than its caller had to give; another try may."""

    def __init__(self, num_bytes: int) -> None:
        """Says how much it takes."""
        super().__init__(num_bytes)
        self.num_bytes = num_bytes


@dataclass(frozen=True)
class DecodedImage:
    """An image as the engine wants it.

    Attributes:
        pixels: uint8 [h, w, 3] RGB, resized by the model's rule, C-contiguous.
        original_size: (H, W) of the whole picture as a person sees it (EXIF applied).
        format: what the file was: "JPEG", "PNG", "WEBP", "BMP", "TIFF" or "GIF".
    """

    pixels: npt.NDArray[np.uint8]
    original_size: tuple[int, int]
    format: str


def decode_image(
    data: bytes | memoryview,
    config: ModelConfig,
    limits: ImageLimits,
    max_memory_bytes: int | None = None,
    place: Callable[[tuple[int, int]], npt.NDArray[np.uint8]] | None = None,
) -> DecodedImage:
    """Decodes an encoded image and resizes it for the model.

    Args:
        data: the whole file.
        config: whose input rule (`shortest_side`, `longest_side`) applies.
        limits: checked by the byte count and the header, before decoding.
        max_memory_bytes: that decoding may take; None: as it needs.
        place: gives the array [h, w, 3] that the resized pixels are written to, by their (h, w);
            None: a new one.

    Returns:
        The resized pixels; with them the size that boxes refer to.

    Raises:
        InvalidImage: for an empty, broken or truncated file, or bytes that are no image.
        UnsupportedImage: for a file that is something else, which the message names.
        ImageTooLarge: for too many bytes or pixels.
        NeedsMemory: where `max_memory_bytes` are too few; told by the header, before decoding.
    """
    picture, name = open_upright(data, limits, max_memory_bytes)
    width, height = picture.size
    new_size = resized_size(height, width, config.shortest_side, config.longest_side)
    pixels = resize_bilinear(picture, *new_size, None if place is None else place(new_size))
    return DecodedImage(pixels=pixels, original_size=(height, width), format=name)


def open_upright(
    data: bytes | memoryview, limits: ImageLimits, max_memory_bytes: int | None = None
) -> tuple[Image.Image, str]:
    """Decodes an encoded image at its full size, as a person sees it.

    Args:
        data: the whole file.
        limits: checked by the byte count and the header, before decoding.
        max_memory_bytes: that decoding may take; None: as it needs.

    Returns:
        The picture in mode RGB with its EXIF orientation applied and transparency laid on white,
        and the name of its format.

    Raises:
        InvalidImage: for an empty, broken or truncated file, or bytes that are no image.
        UnsupportedImage: for a file that is something else, which the message names.
        ImageTooLarge: for too many bytes or pixels.
        NeedsMemory: where `max_memory_bytes` are too few; told by the header, before decoding.
    """
    check_byte_count(len(data), limits)
    name = recognise(bytes(data[:4096]), len(data))
    check_structure(name, data, limits.max_jpeg_scans)
    _prepare_pillow()
    with _broken_means_invalid(name):
        picture: Image.Image = Image.open(open_in_memory(name, data), formats=(name,))
        _check_pixel_count(picture.size, limits)
        num_bytes = picture.width * picture.height * _MEMORY_BYTES_PER_PIXEL[name]
        if max_memory_bytes is not None and num_bytes > max_memory_bytes:
            raise NeedsMemory(num_bytes)
        picture.load()
        # GIF and TIFF may learn their true size only while they load.
        _check_pixel_count(picture.size, limits)
        return _to_rgb(_upright(picture)), name


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
def _broken_means_invalid(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises on a broken file into `InvalidImage`.

    Pillow's readers parse hostile bytes in Python: beside OSError they let out SyntaxError,
    struct.error, KeyError, ZeroDivisionError and others, so the net has to be this wide.
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
def _prepare_pillow() -> tuple[ModuleType, ...]:
    """Registers the decoders that we accept and lifts Pillow's own pixel limit.

    Pillow's limit is one per process and warns before it refuses; ours is a setting, checked
    from the header. Importing the plugins by name keeps Pillow from loading all its others.
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
    keep_pictures_whole()
    # Odd metadata in a stranger's photo is no news for our operator.
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


def _upright(picture: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF orientation says; one whose EXIF is broken stays as it is."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as wide as in `_broken_means_invalid`, for the same readers
        return picture
    turn = _TURN_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: transparency on white, deep samples scaled and not clipped."""
    if picture.mode in _DEEP_MODES:
        return _deep_to_rgb(picture)
    if picture.mode in {"La", "RGBa"} or picture.has_transparency_data:
        return _lay_on_white(picture)
    if picture.mode == "RGB":
        return picture
    if picture.mode == "LAB":
        raise UnsupportedImage("images in CIE L*a*b* colours are not supported; send RGB")
    return picture.convert("RGB")


def _strips(picture: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """The picture from top to bottom in pieces of whole rows, each with its first row's number."""
    width, height = picture.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield picture.crop((0, top, width, min(top + rows, height))), top


def _lay_on_white(picture: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", picture.size)
    for strip, top in _strips(picture):
        with_alpha = strip.convert("RGBA")
        backdrop = Image.new("RGBA", strip.size, _WHITE)
        rgb.paste(Image.alpha_composite(backdrop, with_alpha).convert("RGB"), (0, top))
    return rgb


def _deep_to_rgb(picture: Image.Image) -> Image.Image:
    """Grey samples of more than 8 bits to RGB.

    16-bit integers are divided by 257 (65535 -> 255). Wider integers and floats have no agreed
    white: the smallest usual one (1 for floats, then 255, then 65535) that holds the brightest
    sample is taken, and where none does or some are negative, darkest to brightest is stretched.
    """
    rgb = Image.new("RGB", picture.size)
    black, white = 0.0, 0.0
    if picture.mode in {"I", "F"}:
        black, white = _black_and_white(picture)
    for strip, top in _strips(picture):
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


def _black_and_white(picture: Image.Image) -> tuple[float, float]:
    """Which samples of an int32 or float32 picture become 0 and 255."""
    extremes = [
        (float(samples.min()), float(samples.max()))
        for samples in (_finite(np.asarray(strip)) for strip, _ in _strips(picture))
    ]
    darkest, brightest = min(low for low, _ in extremes), max(high for _, high in extremes)
    whites = (1, _UINT8_MAX, _UINT16_MAX) if picture.mode == "F" else (_UINT16_MAX,)
    white = next((limit for limit in whites if darkest >= 0 and brightest <= limit), None)
    return (darkest, brightest) if white is None else (0.0, float(white))


def _finite(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
