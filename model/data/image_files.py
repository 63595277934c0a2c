"""Image files of a data set -> RGB pixels, by the decoder that serving uses (`model.images`)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from model.data.annotations import DataError
from model.images.decode import ImageLimits, open_upright
from model.images.errors import DetectionError

# Generous: the files of a data set are trusted, unlike those of a request.
FILE_LIMITS = ImageLimits(max_bytes=1 << 30, max_pixels=1 << 29, max_jpeg_scans=1000)


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
