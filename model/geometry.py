"""Sizes and boxes: the resize rule, shape buckets and box conversions; without torch.

The edge resizes images by these rules and the engine pads them; training and evaluation use the
same ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

# Width : height of common images, from cameras and screens.
_USUAL_ASPECTS = ((4, 3), (3, 4), (1, 1), (3, 2), (2, 3), (16, 9), (9, 16))
_FINEST_STRIDE = 8  # of every backbone
_LARGE = 1000  # pixels per unit of an aspect: larger than any network's input


def resized_size(height: int, width: int, shortest_side: int, longest_side: int) -> tuple[int, int]:
    """The size an image is resized to before the network, in pixels.

    The short side becomes `shortest_side`, or less if the long side would exceed `longest_side`
    (DETR's rule, with its rounding); no side is less than one pixel.

    Args:
        height: of the image, at least 1.
        width: of the image, at least 1.
        shortest_side: of the result, in pixels.
        longest_side: maximum of the long side, in pixels.

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
    """The shape bucket of a resized image: its sides rounded up to multiples of `stride`."""
    return -(-height // stride) * stride, -(-width // stride) * stride


def level_shapes(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """(H, W) of the network's feature maps of a padded image: strides 8, 16, 32 and so on."""
    strides = [_FINEST_STRIDE << level for level in range(levels)]
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


def reachable_buckets(
    shortest_side: int, longest_side: int, stride: int
) -> tuple[tuple[int, int], ...]:
    """All shape buckets that resized images can have, those of common aspects first.

    Args:
        shortest_side: of `resized_size`.
        longest_side: of `resized_size`.
        stride: of `padded_size`.

    Returns:
        (H, W) of each; after the common ones, the less elongated come first.
    """
    others = set()
    for short in range(1, shortest_side + 1):
        # Where `short` was rounded to, the aspect is at least longest_side / (short + 0.5).
        rounded = 2 * short * longest_side // (2 * short + 1)
        lowest = shortest_side if short == shortest_side else max(1, rounded)
        for long in range(-(-lowest // stride), -(-longest_side // stride) + 1):
            bucket = padded_size(short, long * stride, stride)
            others |= {bucket, bucket[::-1]}
    usual = usual_buckets(shortest_side, longest_side, stride)
    return tuple(dict.fromkeys((*usual, *sorted(others, key=_elongation))))


def usual_buckets(
    shortest_side: int, longest_side: int, stride: int
) -> tuple[tuple[int, int], ...]:
    """The shape buckets of common aspects, the first of `reachable_buckets`."""
    sizes = [
        resized_size(height * _LARGE, width * _LARGE, shortest_side, longest_side)
        for width, height in _USUAL_ASPECTS
    ]
    return tuple(dict.fromkeys(padded_size(*size, stride) for size in sizes))


def _elongation(bucket: tuple[int, int]) -> tuple[float, int]:
    """Sorts squares before strips, and landscape before portrait."""
    height, width = bucket
    return max(bucket) / min(bucket), height - width


def cxcywh_to_xyxy(boxes: FloatArray) -> FloatArray:
    """[..., 4] centre-size boxes to corner boxes."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=-1)


def xyxy_to_cxcywh(boxes: FloatArray) -> FloatArray:
    """[..., 4] corner boxes to centre-size boxes."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate(((low + high) / 2, high - low), axis=-1)
