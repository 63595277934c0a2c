"""Sizes and boxes: the resize rule, the bucket grid and box conversions (torch-free).

Both sides of the service agree on shapes through this room: the edge resizes by it, the engine
pads by it, training and evaluation see images as serving does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

# Width : height of what people send most; cameras, screens and their crops.
_USUAL_ASPECTS = ((4, 3), (3, 4), (1, 1), (3, 2), (2, 3), (16, 9), (9, 16))
_FINEST_STRIDE = 8  # of every backbone
_LARGE = 1000  # pixels a unit of an aspect: larger than any network's input


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


def level_shapes(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """(H, W) of the network's feature maps of a padded image: strides 8, 16, 32 and so on."""
    strides = [_FINEST_STRIDE << level for level in range(levels)]
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


def reachable_buckets(
    shortest_side: int, longest_side: int, stride: int
) -> tuple[tuple[int, int], ...]:
    """Every bucket that the input rule can give, those of the usual aspects first.

    Args:
        shortest_side: of `resized_size`.
        longest_side: of `resized_size`.
        stride: of `padded_size`.

    Returns:
        (H, W) each, every one once; after the usual ones the less elongated come first.
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
    """The buckets of the aspects that people send most, the first of `reachable_buckets`."""
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
