"""Image files of a data set -> RGB pixels, by the decoder that serving uses (`model.images`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.data.annotations import DataError
from model.images.decode import ImageLimits, open_upright
from model.images.errors import DetectionError

# Generous: the files of a data set are trusted, unlike those of a request.
FILE_LIMITS = ImageLimits(max_bytes=1 << 30, max_pixels=1 << 29, max_jpeg_scans=1000)
# Pillow copies an image twice on the way to numpy; large ones go in strips that fit the cache.
_WHOLE_PIXELS = 1 << 21
_STRIP_PIXELS = 1 << 16


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
    try:
        return open_upright(file.read_bytes(), limits)[0]
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
