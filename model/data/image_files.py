"""Image files of a data set -> RGB pixels, by the decoder that serving uses (`model.images`)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from model.data.errors import DataError
from model.data.input_files import open_regular_file, read_regular_file
from model.images.containers.heif import read_heif_size
from model.images.decode import (
    ImageLimits,
    InputRule,
    JpegDecoding,
    UprightImage,
    open_for_model,
    open_upright,
)
from model.images.errors import DetectionError
from model.images.formats import identify_format

# Generous: the files of a data set are trusted, unlike those of a request.
FILE_LIMITS = ImageLimits(max_bytes=1 << 30, max_pixels=1 << 29, max_jpeg_scans=1000)
# Pillow copies an image twice on the way to numpy; large ones go in strips that fit the cache.
_WHOLE_PIXELS = 1 << 21
_STRIP_PIXELS = 1 << 16
_HEIF_FORMATS = frozenset({"AVIF", "HEIF"})  # their orientation is not that of EXIF
_HEAD_BYTES = 4096  # enough to recognise a format
_ORIENTATIONS = range(2, 9)  # EXIF's values that rotate or mirror
_QUARTER_TURNS = range(5, 9)  # those that swap width and height


@dataclass(frozen=True)
class ImageSize:
    """The size of an image in pixels, after EXIF rotation."""

    width: int
    height: int
    turned: bool = False  # rotated or mirrored by EXIF
    sides_swapped: bool = False  # by a quarter turn


def read_size(file: Path) -> ImageSize:
    """Reads the size of an image from its header; other parts of the file are not checked.

    Raises:
        DataError: for a file that is not an image of an accepted format.
    """
    _ignore_pillow_warnings()
    try:
        with open_regular_file(file) as stream:
            head = stream.read(_HEAD_BYTES)
            name = identify_format(head, os.fstat(stream.fileno()).st_size) if head else ""
            stream.seek(0)
            if name in _HEIF_FORMATS:
                size, turned = read_heif_size(stream.read(FILE_LIMITS.max_bytes))
                return _upright_size(*size, turned)
            with Image.open(stream, formats=(name,)) as image:
                # Not `image.getexif()`: that of a PNG would decode it.
                orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
                width, height = image.size
    except DetectionError as error:
        raise DataError(f"{file} cannot be read as an image: {error.detail}") from error
    except Exception:  # Pillow raises errors of many types for a broken file
        width, height = read_image(file).size
        return ImageSize(width, height)
    return _upright_size(width, height, orientation)


def _upright_size(width: int, height: int, orientation: int | None) -> ImageSize:
    if orientation not in _ORIENTATIONS:
        return ImageSize(width, height)
    if orientation in _QUARTER_TURNS:
        return ImageSize(height, width, turned=True, sides_swapped=True)
    return ImageSize(width, height, turned=True)


@cache
def _ignore_pillow_warnings() -> None:
    """Ignores warnings about odd metadata and about large images, which are decoded anyway."""
    warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


def read_image(file: Path, limits: ImageLimits = FILE_LIMITS) -> Image.Image:
    """Decodes an image file at full size, as serving decodes a request's image.

    Args:
        file: in one of the formats that serving accepts.
        limits: on the file's size, pixels and JPEG scans.

    Returns:
        The image in mode RGB, its EXIF orientation applied, transparency on white.

    Raises:
        DataError: for a file that is missing, or that serving would refuse.
    """
    with _errors_as_data_error(file):
        return open_upright(read_regular_file(file, limits.max_bytes), limits)[0]


def read_for_model(
    file: Path,
    config: InputRule,
    limits: ImageLimits = FILE_LIMITS,
    jpeg_decoding: JpegDecoding = "exact",
) -> UprightImage:
    """Decodes an image file as serving does before it resizes the image.

    Args:
        file: in one of the formats that serving accepts.
        config: the model's input rule.
        limits: on the file's size, pixels and JPEG scans.
        jpeg_decoding: "scaled" decodes large JPEGs to a fraction of their size.

    Raises:
        DataError: as `read_image`.
    """
    with _errors_as_data_error(file):
        data = read_regular_file(file, limits.max_bytes)
        return open_for_model(data, config, limits, jpeg_decoding=jpeg_decoding)


@contextmanager
def _errors_as_data_error(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{file} cannot be read as an image: {error.strerror or error}") from error
    except DetectionError as error:
        raise DataError(f"{file} cannot be read as an image: {error.detail}") from error


def read_pixels(file: Path, limits: ImageLimits = FILE_LIMITS) -> npt.NDArray[np.uint8]:
    """As `read_image`, as an array.

    Returns:
        uint8 [h, w, 3] RGB.

    Raises:
        DataError: for a file that is missing, or that serving would refuse.
    """
    image = read_image(file, limits)
    width, height = image.size
    if width * height <= _WHOLE_PIXELS:
        return np.asarray(image, np.uint8)
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels
