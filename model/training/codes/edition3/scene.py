"""Composition of whole annotated images in edition 3."""

from __future__ import annotations

import numpy as np

from model.training.codes import scene as edition1
from model.training.codes.common import chance, log_uniform, uniform, weighted
from model.training.codes.drafts import (
    Draft,
    add_page,
    place_close,
    place_distractor,
    place_label,
    turn,
    with_codes,
)
from model.training.codes.edition2 import scene as edition2
from model.training.codes.edition2.surroundings import surroundings
from model.training.codes.edition3.addons import symbol_with_addon
from model.training.codes.edition3.rows import row_of_labels
from model.training.codes.scene import Scene, canvas_size, finish
from model.training.codes.surfaces import background
from model.training.codes.warp import Pose, homography, random_bend

_KINDS = (("edition 1", 0.44), ("edition 2", 0.36), ("add-on", 0.1), ("row", 0.1))
_LEAST_CELL = 0.85  # pixels
_TRIES = 6


def _addon_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """A retail code with an add-on, close or anywhere; its box leaves the add-on out."""
    height, width = size
    draft = Draft(background(rng, width, height))
    symbol = symbol_with_addon(rng)
    if chance(rng, 0.5):
        place_close(rng, draft, symbol)
        return draft
    side = max(size) * log_uniform(rng, 0.15, 0.7)
    place_label(rng, draft, symbol, max(side / symbol.bits.shape[1], _LEAST_CELL))
    if chance(rng, 0.3):
        place_distractor(rng, draft, 0.08, 0.4)
    return draft


def _row_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """Labels of one design side by side, some of them beyond the image."""
    height, width = size
    draft = Draft(surroundings(rng, width, height))
    sheet = row_of_labels(rng, max(size) * log_uniform(rng, 0.35, 1.2))
    wide, high = sheet.colour.shape[1], sheet.colour.shape[0]
    bend = random_bend(rng, 0.3)
    for _ in range(_TRIES):
        at = (width * float(rng.normal(0.5, 0.12)), height * float(rng.normal(0.5, 0.12)))
        angle = float(rng.normal(0, 0.08)) if chance(rng, 0.8) else turn(rng)
        matrix = homography(rng, (wide, high), at, angle, uniform(rng, 0, 0.4))
        if add_page(rng, draft, sheet, Pose(matrix, bend)):
            break
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
        The scene; about a quarter have no code.
    """
    kind = weighted(rng, _KINDS)
    if kind == "edition 1":
        return edition1.generate_scene(rng, size, max_side)
    if kind == "edition 2":
        return edition2.generate_scene(rng, size, max_side)
    shape = size or canvas_size(rng, max_side)
    make = _addon_scene if kind == "add-on" else _row_scene
    draft = with_codes(lambda: make(rng, shape), _TRIES)
    return finish(rng, draft, 1.0 if chance(rng, 0.85) else 0.2)
