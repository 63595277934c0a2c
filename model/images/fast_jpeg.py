"""JPEG through libjpeg-turbo's own interface, straight into a Pillow image's memory.

Pillow feeds the same library a file's bytes in parts and copies each row; both give the same
pixels. What this decoder refuses is left to Pillow, whose errors are reported.
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


def available() -> bool:
    """Whether the decoder is installed."""
    return simplejpeg is not None


def decode_jpeg(data: bytes | memoryview, mode: str, size: tuple[int, int]) -> Image.Image | None:
    """Decodes a complete JPEG.

    Args:
        data: the whole file.
        mode: that Pillow would decode it to.
        size: (width, height) by its header.

    Returns:
        An image of mode RGB, not rotated; None if Pillow must decode it.

    Raises:
        MemoryError: if no memory is left.
    """
    if simplejpeg is None or mode not in _MODES:
        return None
    image = Image.new("RGB", size, None)  # the pixels are not set
    with samples_of(image) as samples:
        if samples is None:
            return None
        memory = (ctypes.c_uint8 * (4 * size[0] * size[1])).from_address(samples)
        try:
            # Only these options decode as Pillow does.
            decoded = simplejpeg.decode_jpeg(data, "RGBX", buffer=memory, strict=True)
        except ValueError:
            return None
    return image if decoded.shape[:2] == size[::-1] else None
