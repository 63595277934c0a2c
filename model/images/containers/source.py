"""What the modules of this folder return: the file that a decoder reads."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from model.images.errors import InvalidImage
from model.images.orientation import AS_STORED

# A large photo takes some ten thousand reads; a second of CPU time, several million.
_MAX_READS = 2_000_000


@dataclass(frozen=True)
class ImageSource:
    """An image file without its metadata.

    Attributes:
        data: the file, of the same format.
        orientation: that the removed metadata stated, 1 to 8.
        endings: bytes that replace a missing end of the file. With several, the image is complete
            only if its pixels are the same with each.
        transparent: the 16-bit RGB colour that is transparent, if there is one.
        passes: of the decoder over all pixels.
        check_pixels: raises InvalidImage if pixels are missing in the decoded image, as stored;
            None if the decoder does so.
        frame: left, top, right and bottom of the part that has pixels; None for the whole image.
        format: of the file without its metadata, if it is only known by its structure.
        crop: left, top, right and bottom of the part to be shown, as stored; None for all.
        coded_pixels: that are decoded, if those are more than the image has; one of more than 8
            bits counts twice.
        seconds_per_pixel: of one core, that decoding takes in addition, for kinds that are slow.
    """

    data: bytes | memoryview
    orientation: int = AS_STORED
    endings: tuple[bytes, ...] = ()
    transparent: tuple[int, ...] | None = None
    frame: tuple[int, int, int, int] | None = None
    passes: int = 1
    check_pixels: Callable[[Image.Image], None] | None = None
    format: str | None = None
    crop: tuple[int, int, int, int] | None = None
    coded_pixels: int = 0
    seconds_per_pixel: float = 0.0


class ReadLimitedFile(io.BytesIO):
    """A file in memory with a limit on the number of reads.

    Pillow parses a file's chunks in Python, with a few reads each, and reads pixels in large parts.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        """Opens the file at its start."""
        super().__init__(data)
        self._reads_left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as `io.BytesIO` does.

        Raises:
            InvalidImage: when the limit is exceeded.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise InvalidImage("the image is made of too many pieces to be read in reasonable time")
        return super().read(size)


def open_in_memory(name: str, data: bytes | memoryview) -> io.BytesIO:
    """Opens a file for Pillow, with a limit on the number of reads.

    Args:
        name: of its format, from `identify_format`.
        data: the whole file.
    """
    # A JPEG is read forwards only, at least a byte at a time: a short one needs no limit.
    return io.BytesIO(data) if name == "JPEG" and len(data) <= _MAX_READS else ReadLimitedFile(data)
