"""Unfinished images: placing sheets with codes and distractors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from model.training.codes import warp
from model.training.codes.common import Bytes, Float, chance, log_uniform, uniform, weighted
from model.training.codes.distractors import distractor
from model.training.codes.labels import Layout, Mark, Sheet, make_label, quiet_zone
from model.training.codes.symbols import LINEAR, Symbol, random_symbol

_LEAST_VISIBLE = 0.3
_WELL_VISIBLE = 0.7
_SMALLEST_SIDE = 4.0
_LEAST_CONTRAST = 38.0
_OPAQUE = 0.8
_ADDON_GAP = 10  # modules, about


@dataclass
class Draft:
    """An unfinished image and what has been placed in it.

    Attributes:
        image: [H, W, 3] uint8 RGB, changed in place.
        boxes: One [4] xyxy pixel box for each mark, clipped to the image.
        marks: The marks as they were on their sheets.
        taken: [4] xyxy bounds of all sheets that must not be covered.
    """

    image: Bytes
    boxes: list[Float] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    taken: list[Float] = field(default_factory=list)

    def free(self, extent: Float) -> bool:
        """Whether an extent overlaps none of the placed sheets."""
        return all(
            extent[0] >= box[2] or extent[2] <= box[0] or extent[1] >= box[3] or extent[3] <= box[1]
            for box in self.taken
        )

    def clip(self, extent: Float) -> Float:
        """Clips an xyxy box to the image."""
        high, wide = self.image.shape[:2]
        return np.clip(extent, 0, np.array([wide, high, wide, high])).astype(np.float32)


def with_codes(make: Callable[[], Draft], retries: int) -> Draft:
    """Makes a draft, and another one while it has no code, up to `retries` times."""
    draft = make()
    for _ in range(retries):
        if draft.marks:
            break
        draft = make()
    return draft


def turn(rng: np.random.Generator) -> float:
    """Draws a rotation in radians: mostly near upright, also quarter turns and any angle."""
    base = weighted(rng, [(0.0, 0.72), (0.5, 0.1), (1.0, 0.08), (1.5, 0.1)]) * np.pi
    if chance(rng, 0.14):
        return uniform(rng, 0, 2 * np.pi)
    if chance(rng, 0.2):
        return base
    return base + float(rng.normal(0, 0.09))


def _shows(draft: Draft, sheet: Sheet, box: Float) -> bool:
    """Whether ink printed on the image itself stands out from it in a box."""
    left, top, right, bottom = (int(v) for v in box)
    area = draft.image[top : bottom + 1, left : right + 1].reshape(-1, 3).astype(np.float32)
    gap = np.abs(area.mean(0) - sheet.colour[0, 0]).mean() - area.mean(1).std()
    return bool(gap > _LEAST_CONTRAST)


def add_sheet(
    rng: np.random.Generator,
    draft: Draft,
    sheet: Sheet,
    pose: warp.Pose,
    visible: float = _LEAST_VISIBLE,
) -> bool:
    """Pastes a sheet where it fits.

    Args:
        rng: Source of randomness.
        draft: Picture to change.
        sheet: What to paste.
        pose: Where.
        visible: Least share of each code's bounds that must lie inside the image.

    Returns:
        Whether it was pasted; nothing changes otherwise.
    """
    high, wide = sheet.colour.shape[:2]
    extents = [warp.mark_extent(mark, sheet, pose) for mark in sheet.marks]
    whole = pose.extent((0, 0, wide, high), (wide, high))
    if not draft.free(whole):
        return False
    clipped = [draft.clip(extent) for extent in extents]
    opaque = float(sheet.opacity.mean()) > _OPAQUE
    for full, seen in zip(extents, clipped, strict=True):
        sides = seen[2:] - seen[:2]
        area = float(np.prod(full[2:] - full[:2]))
        if sides.min() < _SMALLEST_SIDE or float(np.prod(sides)) < visible * area:
            return False
        if not opaque and not _shows(draft, sheet, seen):
            return False
    warp.paste(draft.image, sheet, pose, uniform(rng, 0.1, 0.5) * (opaque and chance(rng, 0.5)))
    draft.boxes += clipped
    draft.marks += list(sheet.marks)
    draft.taken.append(whole)
    return True


def add_page(rng: np.random.Generator, draft: Draft, sheet: Sheet, pose: warp.Pose) -> bool:
    """Pastes a page that may reach beyond the image.

    Returns:
        False, with nothing pasted, where a code would be cut so far that it is doubtful whether
        to label it; codes wholly outside are left out.
    """
    boxes, marks = [], []
    for mark in sheet.marks:
        full = warp.mark_extent(mark, sheet, pose)
        seen = draft.clip(full)
        sides = np.maximum(seen[2:] - seen[:2], 0)
        share = float(np.prod(sides)) / max(float(np.prod(full[2:] - full[:2])), 1e-6)
        if share == 0.0:
            continue
        if share < _LEAST_VISIBLE or sides.min() < _SMALLEST_SIDE:
            return False
        boxes.append(seen)
        marks.append(mark)
    warp.paste(draft.image, sheet, pose, uniform(rng, 0, 0.4))
    draft.boxes += boxes
    draft.marks += marks
    return True


def symbol_for(rng: np.random.Generator, side: float, least: float) -> tuple[Symbol, float]:
    """Draws a symbol whose cells stay at least `least` pixels at a longer side of `side` pixels.

    Returns:
        The symbol and its cell size in pixels.
    """
    symbol = random_symbol(rng)
    cell = 0.0
    for _ in range(6):
        rows, columns = symbol.bits.shape
        cell = side / max(columns, rows * symbol.stretch)
        if cell >= least:
            break
        symbol = random_symbol(rng, symbol.label)
    return symbol, max(cell, 0.6)


def _centred(sheet: Sheet, angle: float, middle: tuple[float, float]) -> tuple[float, float]:
    """Returns where the sheet's centre must go for its code's centre to be at `middle`."""
    left, top, right, bottom = sheet.marks[0].box
    dx = (left + right - sheet.colour.shape[1]) / 2
    dy = (top + bottom - sheet.colour.shape[0]) / 2
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return middle[0] - (cos * dx - sin * dy), middle[1] - (sin * dx + cos * dy)


def place_code(rng: np.random.Generator, draft: Draft, side: float) -> None:
    """Tries to put one label with a code of about `side` pixels anywhere into the draft."""
    place_label(rng, draft, *symbol_for(rng, side, 0.75))


def place_label(rng: np.random.Generator, draft: Draft, symbol: Symbol, cell: float) -> None:
    """Tries to put one label with a code whose cells have `cell` pixels into the draft."""
    height, width = draft.image.shape[:2]
    bare = float(draft.image.mean()) if chance(rng, 0.14) else None
    layout = Layout(quiet_zone(rng, 0.12), chance(rng, 0.6), chance(rng, 0.15), under=bare)
    sheet = make_label(rng, symbol, cell, layout)
    angle = turn(rng)
    bend = warp.random_bend(rng, 0.5)
    tilt = uniform(rng, 0, 0.55) if chance(rng, 0.7) else 0.0
    size = (sheet.colour.shape[1], sheet.colour.shape[0])
    visible = _LEAST_VISIBLE if chance(rng, 0.25) else _WELL_VISIBLE
    for _ in range(8):
        middle = (width * uniform(rng, 0.04, 0.96), height * uniform(rng, 0.04, 0.96))
        at = _centred(sheet, angle, middle)
        pose = warp.Pose(warp.homography(rng, size, at, angle, tilt), bend)
        if add_sheet(rng, draft, sheet, pose, visible):
            return


def place_close(rng: np.random.Generator, draft: Draft, symbol: Symbol) -> None:
    """Tries to put one label whose code covers most of the draft."""
    height, width = draft.image.shape[:2]
    rows, columns = symbol.bits.shape[0] * symbol.stretch, symbol.bits.shape[1]
    if symbol.addon is not None:
        columns += _ADDON_GAP + symbol.addon.bits.shape[1]
    angle = turn(rng)
    if symbol.label == LINEAR and chance(rng, 0.5):
        angle = float(rng.normal(0, 0.06))
    cos, sin = abs(float(np.cos(angle))), abs(float(np.sin(angle)))
    fit = min(width / (columns * cos + rows * sin), height / (columns * sin + rows * cos))
    cell = max(0.6, fit * uniform(rng, 0.5, 1.08))
    bare = float(draft.image.mean()) if chance(rng, 0.12) else None
    layout = Layout(quiet_zone(rng, 0.08), chance(rng, 0.6), chance(rng, 0.15), under=bare)
    sheet = make_label(rng, symbol, cell, layout)
    bend = warp.random_bend(rng, 1.0)
    tilt = uniform(rng, 0, 0.5) if chance(rng, 0.7) else 0.0
    size = (sheet.colour.shape[1], sheet.colour.shape[0])
    for _ in range(6):
        middle = (width * float(rng.normal(0.5, 0.05)), height * float(rng.normal(0.5, 0.05)))
        at = _centred(sheet, angle, middle)
        pose = warp.Pose(warp.homography(rng, size, at, angle, tilt), bend)
        if add_sheet(rng, draft, sheet, pose, 0.6):
            return


def place_distractor(rng: np.random.Generator, draft: Draft, low: float, high: float) -> None:
    """Tries to put a distractor of `low`..`high` of the longer side into the draft."""
    height, width = draft.image.shape[:2]
    side = max(width, height) * log_uniform(rng, low, high)
    shape = log_uniform(rng, 1, 4)
    size = (int(side), int(side / shape)) if chance(rng, 0.6) else (int(side / shape), int(side))
    sheet = distractor(rng, *size)
    size = (sheet.colour.shape[1], sheet.colour.shape[0])
    at = (width * uniform(rng, 0.05, 0.95), height * uniform(rng, 0.05, 0.95))
    matrix = warp.homography(rng, size, at, turn(rng), uniform(rng, 0, 0.5))
    add_sheet(rng, draft, sheet, warp.Pose(matrix, warp.random_bend(rng, 0.4)))
