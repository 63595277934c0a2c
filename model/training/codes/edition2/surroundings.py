"""What codes lie on and among in edition 2: backgrounds, and views without any code."""

from __future__ import annotations

import cv2
import numpy as np

from model.training.codes.common import Bytes, chance, log_uniform, uniform, weighted
from model.training.codes.edition2.ink import tilted
from model.training.codes.edition2.prints import PRINTS
from model.training.codes.edition2.structures import STRUCTURES
from model.training.codes.edition2.textures import TEXTURES
from model.training.codes.labels import Sheet
from model.training.codes.surfaces import background, photo

_OVERSIZE = 1.35  # of a pattern that is seen at an angle
_GROUPS = ((TEXTURES, 0.36), (STRUCTURES, 0.32), (PRINTS, 0.32))


def pattern(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Draws any pattern that resembles codes, flat; [height, width, 3]."""
    maker = weighted(rng, weighted(rng, _GROUPS))
    return np.ascontiguousarray(maker(rng, max(16, width), max(16, height))[:height, :width])


def view(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Shows a pattern as a camera does, often at an angle; [height, width, 3]."""
    if chance(rng, 0.35):
        return pattern(rng, width, height)
    wide, high = int(width * _OVERSIZE), int(height * _OVERSIZE)
    return tilted(rng, pattern(rng, wide, high), width, height)


def surroundings(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Draws what is behind codes; [height, width, 3]."""
    kind = weighted(rng, [("surface", 0.42), ("photo", 0.2), ("view", 0.38)])
    if kind == "surface":
        return background(rng, width, height)
    image = photo(rng, width, height) if kind == "photo" else view(rng, width, height)
    if chance(rng, 0.3):  # out of focus
        sigma = log_uniform(rng, 0.7, 5)
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    return np.ascontiguousarray(image)


def look_alike(rng: np.random.Generator, width: int, height: int) -> Sheet:
    """A sheet with a pattern and no code, [height, width]."""
    width, height = max(16, width), max(16, height)
    cover = np.ones((height, width), np.float32)
    if chance(rng, 0.15):  # a round one
        cover[...] = 0
        middle, axes = (width // 2, height // 2), (width // 2, height // 2)
        cv2.ellipse(cover, middle, axes, 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    image = pattern(rng, width, height)
    gain = uniform(rng, 0.8, 1.1)
    return Sheet(np.clip(image * gain, 0, 255).astype(np.uint8), cover, ())
