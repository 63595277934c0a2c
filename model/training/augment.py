"""Changes of a training picture that leave its labels true: geometry, colour, mosaics.

All on uint8 numpy, in the loading process. Every function takes its random generator, so that a
picture of a run can be made again from the run's seed.
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

    cv2.setNumThreads(1)  # the loading process has one core at most
except ImportError:
    cv2 = None  # type: ignore[assignment]

Symmetries = Literal["none", "hflip", "dihedral"]

_MIN_SIDE = 2.0  # pixels; smaller boxes are dropped
_MIN_VISIBLE = 0.35  # share of a box that must survive a crop, else its label is dropped
_CLEAN_BELOW = 0.1  # a crop leaves boxes visible by more than _MIN_VISIBLE or less than this ...
_CROP_SCALES = (0.35, 1.0)  # side of a crop over that of the largest window
_ASPECT_PLAY = 0.2  # of a window, as the logarithm of a factor
_SMALLEST_WINDOW = 16  # pixels
_TRIMMED = 0.7  # share of the uncropped pictures that lose background to fill their batch
_CROP_TRIES = 8  # ... if one of so many crops does
_EVEN = 0.5  # probability of a mirror image
_RECOLOURED = 0.8  # share of the pictures whose colours change
_HAS_CV2 = cv2 is not None


@dataclass(frozen=True)
class AugmentRule:
    """How strongly pictures are changed."""

    symmetries: Symmetries
    crop_probability: float
    photometric: float
    invert_probability: float
    grey_probability: float


def augment(
    picture: AnnotatedImage, size: tuple[int, int], rule: AugmentRule, rng: np.random.Generator
) -> AnnotatedImage:
    """A changed picture that fits into `size` (height, width)."""
    picture = turn(picture, rule.symmetries, rng)
    if rule.symmetries == "dihedral" and _lies(picture.pixels.shape) * _lies(size) < 0:
        picture = quarter_turn(picture)  # less padding: cost is padded pixels, not pictures
    aspect = size[1] / size[0]
    if rng.random() < rule.crop_probability:
        picture = crop(picture, aspect, _CROP_SCALES, rng) or picture
    elif rng.random() < _TRIMMED:
        picture = crop(picture, aspect, (1.0, 1.0), rng, clean=True) or picture
    picture = fit(picture, size, stretch=float(np.exp(rng.uniform(-0.15, 0.15))))
    return AnnotatedImage(recolour(picture.pixels, rule, rng), picture.boxes, picture.labels)


def turn(
    picture: AnnotatedImage, symmetries: Symmetries, rng: np.random.Generator
) -> AnnotatedImage:
    """Mirrors, and for "dihedral" also turns by a multiple of 90 degrees."""
    pixels, boxes = picture.pixels, picture.boxes
    if symmetries == "none":
        return picture
    if rng.random() < _EVEN:
        pixels = pixels[:, ::-1]
        width = pixels.shape[1]
        boxes = np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
    picture = AnnotatedImage(np.ascontiguousarray(pixels), boxes, picture.labels)
    if symmetries == "dihedral":
        for _ in range(int(rng.integers(4))):
            picture = quarter_turn(picture)
    return picture


def quarter_turn(picture: AnnotatedImage) -> AnnotatedImage:
    """Turns by 90 degrees counter-clockwise: (x, y) -> (y, width - x)."""
    boxes, width = picture.boxes, picture.pixels.shape[1]
    turned = np.stack((boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]), 1)
    return AnnotatedImage(np.ascontiguousarray(np.rot90(picture.pixels)), turned, picture.labels)


def crop(
    picture: AnnotatedImage,
    aspect: float,
    scales: tuple[float, float],
    rng: np.random.Generator,
    *,
    clean: bool = False,
) -> AnnotatedImage | None:
    """A random window about as wide over high as `aspect`, avoiding half-cut boxes.

    Args:
        picture: what is cut.
        aspect: width over height.
        scales: the window's side over that of the largest of its aspect, least and most.
        rng: decides.
        clean: returns None rather than a window that cuts a box.
    """
    height, width = picture.pixels.shape[:2]
    for tries_left in reversed(range(_CROP_TRIES)):
        scale = rng.uniform(*scales)
        ratio = aspect * float(np.exp(rng.uniform(-_ASPECT_PLAY, _ASPECT_PLAY)))
        wide = min(max(int(min(width, height * ratio) * scale), _SMALLEST_WINDOW), width)
        high = min(max(int(min(height, width / ratio) * scale), _SMALLEST_WINDOW), height)
        left = int(rng.integers(width - wide + 1))
        top = int(rng.integers(height - high + 1))
        window = (left, top, left + wide, top + high)
        visible = _visible_share(picture.boxes, window)
        uncut = bool(((visible < _CLEAN_BELOW) | (visible > 1 - _CLEAN_BELOW)).all())
        if uncut or (tries_left == 0 and not clean):
            boxes, labels = _clip(picture.boxes, picture.labels, window)
            pixels = picture.pixels[top : top + high, left : left + wide]
            return AnnotatedImage(pixels, boxes - np.array((left, top) * 2, np.float32), labels)
    return None


def fit(picture: AnnotatedImage, size: tuple[int, int], stretch: float = 1.0) -> AnnotatedImage:
    """Resizes to the largest that fits `size` (height, width); `stretch` widens by that factor."""
    height, width = picture.pixels.shape[:2]
    scale = min(size[0] / height, size[1] / (width * stretch))
    high = min(max(round(height * scale), 1), size[0])
    wide = min(max(round(width * stretch * scale), 1), size[1])
    factors = np.array((wide / width, high / height) * 2, np.float32)
    boxes, labels = _keep_large(picture.boxes * factors, picture.labels)
    return AnnotatedImage(_resize(picture.pixels, high, wide), boxes, labels)


def mosaic(
    pictures: Sequence[AnnotatedImage], size: tuple[int, int], rng: np.random.Generator
) -> AnnotatedImage:
    """Four pictures around a random centre of a canvas of `size` (height, width)."""
    height, width = size
    middle_y = int(height * rng.uniform(0.35, 0.65))
    middle_x = int(width * rng.uniform(0.35, 0.65))
    canvas = np.full((height, width, 3), int(rng.integers(256)), np.uint8)
    boxes, labels = [], []
    for place, picture in enumerate(pictures):
        top, bottom = (0, middle_y) if place in (0, 1) else (middle_y, height)
        left, right = (0, middle_x) if place in (0, 2) else (middle_x, width)
        part = fit(picture, (bottom - top, right - left))
        high, wide = part.pixels.shape[:2]
        canvas[top : top + high, left : left + wide] = part.pixels
        boxes.append(part.boxes + np.array((left, top, left, top), np.float32))
        labels.append(part.labels)
    return AnnotatedImage(canvas, np.concatenate(boxes), np.concatenate(labels))


def recolour(pixels: Pixels, rule: AugmentRule, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast, gamma and colour cast in one table, then grey and inversion."""
    strength = rule.photometric
    if strength > 0 and rng.random() < _RECOLOURED:
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


def _lies(shape: tuple[int, ...]) -> int:
    """1 for a (height, width) wider than high, -1 for higher than wide, 0 for square."""
    return (shape[1] > shape[0]) - (shape[1] < shape[0])


def _look_up(pixels: Pixels, table: Pixels) -> Pixels:
    """Each channel through its column of the [256, 3] table."""
    if _HAS_CV2:
        return np.asarray(cv2.LUT(np.ascontiguousarray(pixels), table[None]), np.uint8)
    return np.stack([table[:, channel][pixels[..., channel]] for channel in range(3)], axis=-1)


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resizes, averaging where it shrinks, as the serving side's antialiased resize does."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if _HAS_CV2:
        shrinks = height < pixels.shape[0] or width < pixels.shape[1]
        rule = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=rule), np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.uint8)


def _visible_share(boxes: Boxes, window: tuple[int, int, int, int]) -> Boxes:
    """[n] share of each box's area inside the window."""
    low = np.maximum(boxes[:, :2], window[:2])
    high = np.minimum(boxes[:, 2:], window[2:])
    whole = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    share: Boxes = np.prod(np.clip(high - low, 0, None), axis=1) / np.maximum(whole, 1e-6)
    return share


def _clip(boxes: Boxes, labels: Labels, window: tuple[int, int, int, int]) -> tuple[Boxes, Labels]:
    """The parts of the boxes inside the window; too little left is nothing left."""
    keep = _visible_share(boxes, window) >= _MIN_VISIBLE
    low, high = np.array(window[:2] * 2, np.float32), np.array(window[2:] * 2, np.float32)
    return _keep_large(np.clip(boxes[keep], low, high), labels[keep])


def _keep_large(boxes: Boxes, labels: Labels) -> tuple[Boxes, Labels]:
    keep = (boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(1)
    return boxes[keep].astype(np.float32), labels[keep]
