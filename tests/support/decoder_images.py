"""Encoded images for tests of decoding."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.config import ModelConfig
from model.images.decode import ImageLimits, open_upright

LIMITS = ImageLimits(max_bytes=1 << 22, max_pixels=2_000_000)
CONFIG = ModelConfig(shortest_side=48, longest_side=64)
UINT8 = npt.NDArray[np.uint8]


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, form, **options)
    return encoded.getvalue()


def upright(data: bytes) -> UINT8:
    return np.asarray(open_upright(data, LIMITS)[0])


def corners() -> Image.Image:
    """40 x 20: red, green, blue and yellow corners."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("lime", (20, 0, 40, 10))
    image.paste("blue", (0, 10, 20, 20))
    image.paste("yellow", (20, 10, 40, 20))
    return image
