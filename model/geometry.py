"""Sizes and boxes: the resize rule, the bucket grid and box conversions (torch-free).

Both sides of the service agree on shapes through this room: the edge resizes by it, the engine
pads by it, training and evaluation see images as serving does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


def resized_size(height: int, width: int, shortest_side: int, longest_side: int) -> tuple[int, int]:
    """The size an image is resized to before the network, in pixels.

    The short side becomes `shortest_side` unless that makes the long side pass `longest_side`
    (DETR's rule, with its rounding); no side falls below one pixel.

    Args:
        height: of the image, at least 1.
        width: of the image, at least 1.
        shortest_side: the wished short side.
        longest_side: the bound of the long side.

    Returns:
        (height, width).

    Raises:
        ValueError: for a side below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no size")
    short, long = min(height, width), max(height, width)
    size = shortest_side
    if long / short * size > longest_side:
        size = max(1, round(longest_side * short / long))
    other = min(max(1, int(size * long / short)), longest_side)
    return (size, other) if height <= width else (other, size)


def padded_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """The bucket of a resized image: its sides rounded up to multiples of `stride`."""
    return -(-height // stride) * stride, -(-width // stride) * stride


def cxcywh_to_xyxy(boxes: FloatArray) -> FloatArray:
    """[..., 4] centre-size boxes to corner boxes."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=-1)


def xyxy_to_cxcywh(boxes: FloatArray) -> FloatArray:
    """[..., 4] corner boxes to centre-size boxes."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate(((low + high) / 2, high - low), axis=-1)
