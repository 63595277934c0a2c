"""Augmentation of training images with their boxes: geometry, colour, mosaics.

All on uint8 numpy, in the loading processes. Every function takes its random generator, so that
the images of a run are reproducible from its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from model.training.sources import AnnotatedImage, Boxes, Labels, Pixels

try:
    import cv2

    cv2.setNumThreads(1)  # the loading processes already run in parallel
except ImportError:
    cv2 = None  # type: ignore[assignment]

Symmetries = Literal["none", "hflip", "dihedral"]

_MIN_SIDE = 2.0  # pixels; smaller boxes are dropped
_MIN_VISIBLE = 0.35  # share of a box that must survive a crop, else its label is dropped
_CLEAN_BELOW = 0.1  # a crop leaves boxes visible by more than _MIN_VISIBLE or less than this ...
_CROP_SCALES = (0.35, 1.0)  # side of a crop relative to the largest window
_ASPECT_RANGE = 0.2  # largest change of a window's aspect, as the logarithm of a factor
_SMALLEST_WINDOW = 16  # pixels
_TRIM_PROBABILITY = 0.7  # uncropped images lose background to fill their batch ...
_CROP_TRIES = 8  # ... if one of so many windows cuts no box
_MIRROR_PROBABILITY = 0.5
_RECOLOUR_PROBABILITY = 0.8
_HAS_CV2 = cv2 is not None


@dataclass(frozen=True)
class AugmentRule:
    """Strength of the augmentation."""

    symmetries: Symmetries
    crop_probability: float
    photometric: float
    invert_probability: float
    grey_probability: float


def augment(
    image: AnnotatedImage, size: tuple[int, int], rule: AugmentRule, rng: np.random.Generator
) -> AnnotatedImage:
    """Returns an augmented image that fits into `size` (height, width)."""
    image = mirror_and_rotate(image, rule.symmetries, rng)
    if rule.symmetries == "dihedral" and _wider(image.pixels.shape) * _wider(size) < 0:
        image = quarter_turn(image)  # less padding: cost is padded pixels, not images
    aspect = size[1] / size[0]
    if rng.random() < rule.crop_probability:
        image = crop(image, aspect, _CROP_SCALES, rng) or image
    elif rng.random() < _TRIM_PROBABILITY:
        image = crop(image, aspect, (1.0, 1.0), rng, clean=True) or image
    image = fit(image, size, stretch=float(np.exp(rng.uniform(-0.15, 0.15))))
    return AnnotatedImage(recolour(image.pixels, rule, rng), image.boxes, image.labels)


def mirror_and_rotate(
    image: AnnotatedImage, symmetries: Symmetries, rng: np.random.Generator
) -> AnnotatedImage:
    """Mirrors at random; for "dihedral" also rotates by a multiple of 90 degrees."""
    pixels, boxes = image.pixels, image.boxes
    if symmetries == "none":
        return image
    if rng.random() < _MIRROR_PROBABILITY:
        pixels = pixels[:, ::-1]
        width = pixels.shape[1]
        boxes = np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
    image = AnnotatedImage(np.ascontiguousarray(pixels), boxes, image.labels)
    if symmetries == "dihedral":
        for _ in range(int(rng.integers(4))):
            image = quarter_turn(image)
    return image


def quarter_turn(image: AnnotatedImage) -> AnnotatedImage:
    """Rotates by 90 degrees counter-clockwise: (x, y) -> (y, width - x)."""
    boxes, width = image.boxes, image.pixels.shape[1]
    rotated = np.stack((boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]), 1)
    return AnnotatedImage(np.ascontiguousarray(np.rot90(image.pixels)), rotated, image.labels)


def crop(
    image: AnnotatedImage,
    aspect: float,
    scales: tuple[float, float],
    rng: np.random.Generator,
    *,
    clean: bool = False,
) -> AnnotatedImage | None:
    """Cuts a random window, preferably one that cuts no box.

    Args:
        image: the whole image.
        aspect: approximate width over height of the window.
        scales: smallest and largest side of the window, relative to the largest of its aspect.
        rng: source of randomness.
        clean: returns None instead of a window that cuts a box.
    """
    height, width = image.pixels.shape[:2]
    for tries_left in reversed(range(_CROP_TRIES)):
        scale = rng.uniform(*scales)
        ratio = aspect * float(np.exp(rng.uniform(-_ASPECT_RANGE, _ASPECT_RANGE)))
        wide = min(max(int(min(width, height * ratio) * scale), _SMALLEST_WINDOW), width)
        high = min(max(int(min(height, width / ratio) * scale), _SMALLEST_WINDOW), height)
        left = int(rng.integers(width - wide + 1))
        top = int(rng.integers(height - high + 1))
        window = (left, top, left + wide, top + high)
        visible = _visible_share(image.boxes, window)
        uncut = bool(((visible < _CLEAN_BELOW) | (visible > 1 - _CLEAN_BELOW)).all())
        if uncut or (tries_left == 0 and not clean):
            boxes, labels = _clip(image.boxes, image.labels, window)
            pixels = image.pixels[top : top + high, left : left + wide]
            return AnnotatedImage(pixels, boxes - np.array((left, top) * 2, np.float32), labels)
    return None


def fit(image: AnnotatedImage, size: tuple[int, int], stretch: float = 1.0) -> AnnotatedImage:
    """Resizes to the largest that fits `size` (height, width), widened by the factor `stretch`."""
    height, width = image.pixels.shape[:2]
    scale = min(size[0] / height, size[1] / (width * stretch))
    high = min(max(round(height * scale), 1), size[0])
    wide = min(max(round(width * stretch * scale), 1), size[1])
    factors = np.array((wide / width, high / height) * 2, np.float32)
    boxes, labels = _keep_large(image.boxes * factors, image.labels)
    return AnnotatedImage(_resize(image.pixels, high, wide), boxes, labels)


def mosaic(
    images: Sequence[AnnotatedImage], size: tuple[int, int], rng: np.random.Generator
) -> AnnotatedImage:
    """Puts four images around a random centre of a canvas of `size` (height, width)."""
    height, width = size
    middle_y = int(height * rng.uniform(0.35, 0.65))
    middle_x = int(width * rng.uniform(0.35, 0.65))
    canvas = np.full((height, width, 3), int(rng.integers(256)), np.uint8)
    boxes, labels = [], []
    for place, image in enumerate(images):
        top, bottom = (0, middle_y) if place in (0, 1) else (middle_y, height)
        left, right = (0, middle_x) if place in (0, 2) else (middle_x, width)
        part = fit(image, (bottom - top, right - left))
        high, wide = part.pixels.shape[:2]
        canvas[top : top + high, left : left + wide] = part.pixels
        boxes.append(part.boxes + np.array((left, top, left, top), np.float32))
        labels.append(part.labels)
    return AnnotatedImage(canvas, np.concatenate(boxes), np.concatenate(labels))


def recolour(pixels: Pixels, rule: AugmentRule, rng: np.random.Generator) -> Pixels:
    """Changes brightness, contrast, gamma and colour cast; at random also to grey or inverted."""
    strength = rule.photometric
    if strength > 0 and rng.random() < _RECOLOUR_PROBABILITY:
        ramp = np.arange(256, dtype=np.float32) / 255
        gamma = np.exp(strength * rng.uniform(-0.4, 0.4))
        gain = np.exp(strength * rng.uniform(-0.3, 0.3))
        cast = np.exp(strength * rng.uniform(-0.12, 0.12, 3))
        shift = strength * rng.uniform(-0.12, 0.12)
        table = (ramp[:, None] ** gamma - 0.5) * gain * cast + 0.5 + shift
        pixels = _look_up(pixels, np.clip(table * 255, 0, 255).astype(np.uint8))
    if rng.random() < rule.grey_probability:
        grey = pixels @ np.array((0.299, 0.587, 0.114), np.float32)
        pixels = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if rng.random() < rule.invert_probability:
        pixels = 255 - pixels
    return pixels


def _wider(shape: tuple[int, ...]) -> int:
    """1 for a (height, width) wider than high, -1 for higher than wide, 0 for a square."""
    return (shape[1] > shape[0]) - (shape[1] < shape[0])


def _look_up(pixels: Pixels, table: Pixels) -> Pixels:
    """Maps each channel by its column of the [256, 3] table."""
    if _HAS_CV2:
        return np.asarray(cv2.LUT(np.ascontiguousarray(pixels), table[None]), np.uint8)
    return np.stack([table[:, channel][pixels[..., channel]] for channel in range(3)], axis=-1)


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resizes, averaging when it shrinks, as the resize of serving does."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if _HAS_CV2:
        shrinks = height < pixels.shape[0] or width < pixels.shape[1]
        rule = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=rule), np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.uint8)


def _visible_share(boxes: Boxes, window: tuple[int, int, int, int]) -> Boxes:
    """Returns the share [n] of each box's area inside the window."""
    low = np.maximum(boxes[:, :2], window[:2])
    high = np.minimum(boxes[:, 2:], window[2:])
    whole = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    share: Boxes = np.prod(np.clip(high - low, 0, None), axis=1) / np.maximum(whole, 1e-6)
    return share


def _clip(boxes: Boxes, labels: Labels, window: tuple[int, int, int, int]) -> tuple[Boxes, Labels]:
    """Clips the boxes to the window, without those of which too little is visible."""
    keep = _visible_share(boxes, window) >= _MIN_VISIBLE
    low, high = np.array(window[:2] * 2, np.float32), np.array(window[2:] * 2, np.float32)
    return _keep_large(np.clip(boxes[keep], low, high), labels[keep])


def _keep_large(boxes: Boxes, labels: Labels) -> tuple[Boxes, Labels]:
    keep = (boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(1)
    return boxes[keep].astype(np.float32), labels[keep]
