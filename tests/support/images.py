"""Small images for tests of the service."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def solid_png(colour: tuple[int, int, int], width: int = 64, height: int = 48) -> bytes:
    """A PNG of one colour, which resizing keeps exactly."""
    return encode_png(np.full((height, width, 3), colour, dtype=np.uint8))


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
