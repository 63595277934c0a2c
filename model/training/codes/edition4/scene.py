"""Composition of whole annotated images in edition 4."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from model.training.codes.common import Bytes, chance, log_uniform
from model.training.codes.drafts import Draft, place_code
from model.training.codes.edition3 import scene as edition3
from model.training.codes.edition4.plates import plates_view
from model.training.codes.scene import Scene, canvas_size, finish

_PLATES = 0.12  # share of the scenes
_WITH_CODE = 0.3  # share of those that have a code in front


def _plates_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """Rows of thin things, some with a code in front of them."""
    return scene_of_view(rng, plates_view, size)


def scene_of_view(
    rng: np.random.Generator,
    view: Callable[[np.random.Generator, int, int], Bytes],
    size: tuple[int, int],
) -> Draft:
    """A view without codes, sometimes blurred and sometimes with a code in front of it.

    Args:
        rng: Source of randomness.
        view: Draws [height, width, 3], given width and height.
        size: Height and width in pixels.
    """
    height, width = size
    image = view(rng, width, height)
    if chance(rng, 0.3):
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), log_uniform(rng, 0.6, 3)), np.uint8)
    draft = Draft(np.ascontiguousarray(image))
    if chance(rng, _WITH_CODE):
        place_code(rng, draft, max(size) * log_uniform(rng, 0.08, 0.5))
    return draft


def generate_scene(
    rng: np.random.Generator, size: tuple[int, int] | None = None, max_side: int = 640
) -> Scene:
    """Generates one annotated image.

    Args:
        rng: Source of randomness; the same state gives the same scene.
        size: Height and width in pixels, or None to draw them.
        max_side: Longest side in pixels where `size` is None.

    Returns:
        The scene; about a third have no code.
    """
    if not chance(rng, _PLATES):
        return edition3.generate_scene(rng, size, max_side)
    draft = _plates_scene(rng, size or canvas_size(rng, max_side))
    return finish(rng, draft, 1.0 if chance(rng, 0.7) else 0.2)
