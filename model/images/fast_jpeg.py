"""JPEG through libjpeg-turbo's own interface, straight into a Pillow image's memory.

Pillow feeds the same library a file's bytes in parts and copies each row; both give the same
pixels. What this decoder refuses is left to Pillow, whose errors are reported.

The library can also decode to fractions of the size, in less time: it computes fewer samples of
each block of 8 x 8 from the low frequencies of its DCT.
"""

from __future__ import annotations

import ctypes

from PIL import Image

from model.images.pixel_memory import samples_of

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

_MODES = frozenset({"L", "RGB"})  # not CMYK, whose conversion is Pillow's
BLOCK = 8  # samples of a side
# In warnings of libjpeg: no data where there should be some, and other bytes before the end.
_ENDS_EARLY = ("premature end of data segment", "extraneous bytes before marker 0xd9")
_FASTER_SAMPLES = (1, 2, 3, 4)  # of a side of a block; 5, 6 and 7 take longer than all 8


class EndsEarly(Exception):
    """The data of a scan may end before its pixels do."""


def available() -> bool:
    """Whether the decoder is installed."""
    return simplejpeg is not None


def choose_samples(size: tuple[int, int], least: tuple[int, int]) -> int:
    """Chooses the smallest scale that a JPEG can be decoded to in less time than the whole.

    Args:
        size: (width, height) by its header.
        least: the width and height that the scaled image must not be below.

    Returns:
        1, 2, 3 or 4: the samples of a block's side, of 8; 8 if none of these is enough.
    """
    for samples in _FASTER_SAMPLES:
        if all(side * samples >= BLOCK * low for side, low in zip(size, least, strict=True)):
            return samples
    return BLOCK


def decode_jpeg(
    data: bytes | memoryview,
    mode: str,
    size: tuple[int, int],
    samples: int = BLOCK,
) -> Image.Image | None:
    """Decodes a complete JPEG.

    Args:
        data: the whole file.
        mode: that Pillow would decode it to.
        size: (width, height) by its header.
        samples: of 8, of the side of a block.

    Returns:
        An image of mode RGB, not rotated; None if Pillow must decode it. Its sides are those of
        `size`, times `samples` / 8 and rounded up: the last row and column may show less.

    Raises:
        EndsEarly: if pixels may be missing.
        MemoryError: if no memory is left.
    """
    if simplejpeg is None:
        return None
    if mode not in _MODES:
        _check_end(data)
        return None
    width, height = (-(-side * samples // BLOCK) for side in size)
    image = Image.new("RGB", (width, height), None)  # the pixels are not set
    with samples_of(image) as address:
        if address is None:
            return None
        memory = (ctypes.c_uint8 * (4 * width * height)).from_address(address)
        # The smallest scale at which both sides are at least that long; 0: no scaling.
        least = {"min_width": width, "min_height": height} if samples < BLOCK else {}
        try:
            # Only these options decode as Pillow does.
            decoded = simplejpeg.decode_jpeg(data, "RGBX", **least, buffer=memory, strict=True)
        except ValueError as error:
            _raise_if_ended(error)
            return None
    return image if decoded.shape[:2] == (height, width) else None


def _check_end(data: bytes | memoryview) -> None:
    """Decodes a CMYK image to an eighth of its size, only to see whether its data are complete."""
    try:
        simplejpeg.decode_jpeg(data, "CMYK", min_width=1, min_height=1, strict=True)
    except ValueError as error:
        _raise_if_ended(error)


def _raise_if_ended(error: ValueError) -> None:
    if any(each in str(error) for each in _ENDS_EARLY):
        raise EndsEarly from error
