"""Composition of whole annotated images in edition 2."""

from __future__ import annotations

import numpy as np

from model.training.codes import scene as edition1
from model.training.codes.common import chance, integer, log_uniform, uniform, weighted
from model.training.codes.drafts import Draft, add_page, add_sheet, turn, with_codes
from model.training.codes.edition2.objects import carrier, code_label
from model.training.codes.edition2.surroundings import look_alike, surroundings, view
from model.training.codes.labels import Sheet
from model.training.codes.scene import Scene, canvas_size, finish, negative_scene
from model.training.codes.warp import Pose, homography, random_bend

_KINDS = (("none", 0.3), ("edition 1", 0.25), ("far", 0.24), ("many", 0.21))
_WELL_VISIBLE = 0.75
_SMALLEST_CODE = 15.0  # pixels: longer side of the smallest codes
_TRIES = 6


def _placed(
    rng: np.random.Generator, draft: Draft, sheet: Sheet, spread: float, tilt: float
) -> bool:
    """Tries to put a sheet into the draft, its centre up to `spread` (0..0.5) off the middle."""
    height, width = draft.image.shape[:2]
    size = (sheet.colour.shape[1], sheet.colour.shape[0])
    bend = random_bend(rng, 0.3)
    for _ in range(_TRIES):
        angle = turn(rng)
        at = (
            width * uniform(rng, 0.5 - spread, 0.5 + spread),
            height * uniform(rng, 0.5 - spread, 0.5 + spread),
        )
        pose = Pose(homography(rng, size, at, angle, uniform(rng, 0, tilt)), bend)
        if add_sheet(rng, draft, sheet, pose, _WELL_VISIBLE):
            return True
    return False


def _add_look_alikes(rng: np.random.Generator, draft: Draft, most: int) -> None:
    """Puts up to `most` sheets without codes into free places."""
    longest = max(draft.image.shape[:2])
    for _ in range(integer(rng, 0, most)):
        side = longest * log_uniform(rng, 0.07, 0.45)
        shape = log_uniform(rng, 1, 3.5)
        size = (
            (int(side), int(side / shape)) if chance(rng, 0.6) else (int(side / shape), int(side))
        )
        _placed(rng, draft, look_alike(rng, *size), 0.45, 0.4)


def _far_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """One to four small codes, on objects or on labels of their own."""
    height, width = size
    draft = Draft(surroundings(rng, width, height))
    greatest = max(_SMALLEST_CODE * 2, max(size) * 0.13)
    for _ in range(weighted(rng, [(1, 0.45), (2, 0.28), (3, 0.17), (4, 0.1)])):
        side = log_uniform(rng, _SMALLEST_CODE, greatest)
        if chance(rng, 0.4):
            sheet = code_label(rng, side)
        else:
            sheet = carrier(rng, 1, (side, side + 1), log_uniform(rng, 1.3, 14))
        _placed(rng, draft, sheet, 0.46, 0.4)
    _add_look_alikes(rng, draft, 2)
    return draft


def _many_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """Several codes of mixed kinds: a sheet full of them, or objects side by side."""
    height, width = size
    draft = Draft(surroundings(rng, width, height))
    greatest = max(_SMALLEST_CODE * 2, max(size) * 0.19)
    if chance(rng, 0.45):
        count = integer(rng, 4, 14)
        sheet = carrier(rng, count, (_SMALLEST_CODE, greatest * 0.7), log_uniform(rng, 1.6, 4))
        wide, high = sheet.colour.shape[1], sheet.colour.shape[0]
        for _ in range(_TRIES):
            at = (width * float(rng.normal(0.5, 0.1)), height * float(rng.normal(0.5, 0.1)))
            angle = float(rng.normal(0, 0.1)) if chance(rng, 0.8) else turn(rng)
            matrix = homography(rng, (wide, high), at, angle, uniform(rng, 0, 0.35))
            if add_page(rng, draft, sheet, Pose(matrix, random_bend(rng, 0.4))):
                draft.taken += draft.boxes  # nothing may cover its codes
                break
    for _ in range(integer(rng, 0 if draft.marks else 3, 4 if draft.marks else 9)):
        count = weighted(rng, [(1, 0.7), (2, 0.2), (3, 0.1)])
        sheet = carrier(rng, count, (_SMALLEST_CODE, greatest), log_uniform(rng, 1.2, 5))
        _placed(rng, draft, sheet, 0.48, 0.35)
    _add_look_alikes(rng, draft, 1)
    return draft


def _none_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """An image without any code."""
    height, width = size
    kind = weighted(rng, [("view", 0.6), ("sheets", 0.22), ("edition 1", 0.18)])
    if kind == "edition 1":
        return negative_scene(rng, size)
    draft = Draft((view if kind == "view" else surroundings)(rng, width, height))
    _add_look_alikes(rng, draft, 1 if kind == "view" else 6)
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
    kind = weighted(rng, _KINDS)
    if kind == "edition 1":
        return edition1.generate_scene(rng, size, max_side)
    shape = size or canvas_size(rng, max_side)
    makers = {"none": _none_scene, "far": _far_scene, "many": _many_scene}
    draft = with_codes(lambda: makers[kind](rng, shape), 0 if kind == "none" else _TRIES)
    return finish(rng, draft, 1.0 if chance(rng, 0.85) else 0.2)
