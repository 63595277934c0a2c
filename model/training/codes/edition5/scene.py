"""Composition of whole annotated images in edition 5."""

from __future__ import annotations

import numpy as np

from model.training.codes.common import chance
from model.training.codes.drafts import Draft
from model.training.codes.edition4 import scene as edition4
from model.training.codes.edition5.outlines import outlines_view
from model.training.codes.scene import Scene, canvas_size, finish

_OUTLINES = 0.12  # share of the scenes


def _outlines_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """Rows of thin outlines, some with a code in front of them."""
    return edition4.scene_of_view(rng, outlines_view, size)


def generate_scene(
    rng: np.random.Generator, size: tuple[int, int] | None = None, max_side: int = 640
) -> Scene:
    """Generates one annotated image.

    Args:
        rng: Source of randomness; the same state gives the same scene.
        size: Height and width in pixels, or None to draw them.
        max_side: Longest side in pixels where `size` is None.

    Returns:
        The scene; about two fifths have no code.
    """
    if not chance(rng, _OUTLINES):
        return edition4.generate_scene(rng, size, max_side)
    draft = _outlines_scene(rng, size or canvas_size(rng, max_side))
    return finish(rng, draft, 1.0 if chance(rng, 0.6) else 0.2)
