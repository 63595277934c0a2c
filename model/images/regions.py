"""Encoded image -> the pixels of several regions, each resized for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from model.geometry import resized_size
from model.images.decode import Cost, ImageLimits, InputRule, open_upright
from model.images.resize import resize_bilinear

Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels of the upright image


def decode_regions(  # noqa: PLR0913, PLR0917 - as `decode_image`
    data: bytes | memoryview,
    config: InputRule,
    limits: ImageLimits,
    granted: Cost | None,
    regions: Sequence[Box],
    place: Callable[[int, tuple[int, int]], npt.NDArray[np.uint8]],
) -> tuple[int, int]:
    """Decodes an encoded image once and resizes regions of it as if each were an image.

    Args:
        data: the whole file.
        config: the model's input rule.
        limits: checked by the byte count and the header, before decoding.
        granted: what decoding may take; None for no limit.
        regions: in pixels after EXIF rotation.
        place: returns the array [h, w, 3] for a region's pixels, given its number and (h, w).

    Returns:
        (H, W) of the image after EXIF rotation.

    Raises:
        DetectionError, CostsMore: as `decode_image`.
    """
    image, _ = open_upright(data, limits, granted)
    for number, (left, top, right, bottom) in enumerate(regions):
        size = resized_size(bottom - top, right - left, config.shortest_side, config.longest_side)
        resize_bilinear(image.crop((left, top, right, bottom)), *size, place(number, size))
    return image.height, image.width
