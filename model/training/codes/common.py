"""Shared array types and small random-draw helpers of the code-scene generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

Float: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Bits: TypeAlias = npt.NDArray[np.bool_]

T = TypeVar("T")

cv2.setNumThreads(1)


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Returns True with the given probability (0..1)."""
    return bool(rng.random() < probability)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a float uniformly from [low, high)."""
    return float(rng.uniform(low, high))


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a float log-uniformly from [low, high); both must be positive."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Draws an integer from low..high, both included."""
    return int(rng.integers(low, high + 1))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Picks one entry, all equally likely."""
    return options[int(rng.integers(len(options)))]


def weighted(rng: np.random.Generator, options: Sequence[tuple[T, float]]) -> T:
    """Picks one of (entry, weight) pairs in proportion to the weights."""
    total = sum(weight for _, weight in options)
    mark = rng.random() * total
    for entry, weight in options:
        mark -= weight
        if mark < 0:
            return entry
    return options[-1][0]


def to_bytes(values: npt.NDArray[Any]) -> Bytes:
    """Rounds and clips an array of 0..255 values to uint8, same shape."""
    return np.asarray(cv2.convertScaleAbs(np.maximum(values, 0)), np.uint8).reshape(values.shape)


def resize(image: npt.NDArray[Any], width: int, height: int, nearest: bool = False) -> Any:
    """Resizes an image, averaging when it shrinks.

    Args:
        image: [H, W] or [H, W, C] uint8 or float32.
        width: New width in pixels, at least 1.
        height: New height in pixels, at least 1.
        nearest: Keep hard pixel edges when the image grows.

    Returns:
        The image at [height, width(, C)], same type.
    """
    width, height = max(1, width), max(1, height)
    shrinks = width < image.shape[1] or height < image.shape[0]
    grown = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else grown)


def smooth_noise(rng: np.random.Generator, width: int, height: int, cells: float) -> Float:
    """Makes a smooth random field.

    Args:
        rng: Source of randomness.
        width: Width in pixels.
        height: Height in pixels.
        cells: Rough number of bumps along the longer side.

    Returns:
        [height, width] float32, roughly in -1..1.
    """
    step = max(width, height) / max(cells, 1.0)
    shape = (max(2, round(height / step) + 1), max(2, round(width / step) + 1))
    coarse = rng.uniform(-1, 1, shape).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(field, np.float32)
