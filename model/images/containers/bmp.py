"""BMP: the size of a run-length encoded image, and padding after the last pixel."""

from __future__ import annotations

import struct

from model.images.containers.source import ImageSource
from model.images.errors import ImageTooLarge
from model.images.limits import ImageLimits

# Pillow expands run lengths in Python, pixel by pixel where a line ends early.
_MAX_RUN_LENGTH_PIXELS = 4_000_000
_SECONDS_PER_RUN_LENGTH_PIXEL = 180e-9
_RUN_LENGTH = frozenset({1, 2})  # 8 and 4 bits a pixel
_RAW = frozenset({0, 3})  # without and with bit fields
_INFO_HEADER_BYTES = 40


def read_bmp(data: bytes | memoryview, _limits: ImageLimits) -> ImageSource:
    """Returns a BMP as it is, with the padding of its last row if that is missing.

    Args:
        data: the whole file; a broken one is left to the decoder to refuse.

    Raises:
        ImageTooLarge: for too many pixels in a run-length encoded BMP.
    """
    header = bytes(data[:54])
    if len(header) < 54 or header[14] < _INFO_HEADER_BYTES:  # noqa: PLR2004
        return ImageSource(data)
    (pixels_offset,) = struct.unpack_from("<I", header, 10)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", header, 18)
    if compression in _RUN_LENGTH and abs(width * height) > _MAX_RUN_LENGTH_PIXELS:
        raise ImageTooLarge(
            f"the BMP image is run-length encoded and has {width} x {abs(height)} pixels; at most "
            f"{_MAX_RUN_LENGTH_PIXELS} of that kind are accepted, or send it uncompressed"
        )
    if compression in _RUN_LENGTH:
        return ImageSource(data, seconds_per_pixel=_SECONDS_PER_RUN_LENGTH_PIXEL)
    if compression not in _RAW or width < 1 or not height:
        return ImageSource(data)
    row_bytes = (width * bits + 7) // 8
    padding = -row_bytes % 4
    end = pixels_offset + (row_bytes + padding) * abs(height)
    missing = end - len(data)
    if 0 < missing <= padding:
        return ImageSource(bytes(data) + bytes(missing))
    return ImageSource(data)
