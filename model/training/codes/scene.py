"""Composition of whole annotated images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.training.codes import optics
from model.training.codes.common import (
    Bytes,
    Float,
    chance,
    integer,
    log_uniform,
    pick,
    resize,
    uniform,
    weighted,
)
from model.training.codes.distractors import distractor
from model.training.codes.drafts import (
    Draft,
    add_page,
    place_close,
    place_code,
    place_distractor,
    symbol_for,
)
from model.training.codes.labels import Layout, Mark, Sheet, make_label, quiet_zone
from model.training.codes.pages import make_page
from model.training.codes.surfaces import background
from model.training.codes.symbols import LINEAR, Symbol, random_symbol
from model.training.codes.warp import Pose, homography, random_bend

_KINDS = (("none", 0.33), ("clean", 0.17), ("close", 0.17), ("label", 0.22), ("page", 0.11))


@dataclass(frozen=True)
class Scene:
    """An annotated image.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        boxes_xyxy: [N, 4] float32 pixel bounds (left, top, right, bottom) inside the image.
        labels: [N] int64 indices into CLASS_NAMES.
        payloads: The N texts in the codes.
    """

    image: Bytes
    boxes_xyxy: Float
    labels: npt.NDArray[np.int64]
    payloads: tuple[str, ...]


def canvas_size(rng: np.random.Generator, max_side: int) -> tuple[int, int]:
    """Draws (height, width) with a random aspect ratio."""
    side = max_side if chance(rng, 0.55) else int(log_uniform(rng, max_side * 0.45, max_side))
    shape = pick(rng, (1.0, 1.0, 1.333, 1.333, 1.5, 1.78, 1.25, 2.2))
    if chance(rng, 0.06):
        shape = uniform(rng, 2, 4)
    short = max(32, round(side / shape))
    return (short, side) if chance(rng, 0.6) else (side, short)


def _draft(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    height, width = size
    if chance(rng, 0.1):  # a uniform sheet, as in scans and drawings
        return Draft(np.full((height, width, 3), integer(rng, 225, 255), np.uint8))
    return Draft(background(rng, width, height))


def _label_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """One to six codes of any size among other things."""
    draft = _draft(rng, size)
    count = weighted(rng, [(1, 0.5), (2, 0.2), (3, 0.12), (4, 0.08), (5, 0.05), (6, 0.05)])
    longest = max(size)
    for _ in range(count):
        share = log_uniform(rng, 0.055, 0.7 if count == 1 else 0.4)
        place_code(rng, draft, max(12.0, share * longest))
    for _ in range(integer(rng, 1, 3) if chance(rng, 0.3) else 0):
        place_distractor(rng, draft, 0.08, 0.4)
    return draft


def _page_scene(rng: np.random.Generator, size: tuple[int, int], codes: bool = True) -> Draft:
    """A printed page, seen whole or in part, flat or bent, with codes or without."""
    height, width = size
    zoom = log_uniform(rng, 0.8, 1.6)
    wide, high = int(width * zoom), int(height * zoom)
    count = weighted(rng, [(1, 0.4), (2, 0.25), (3, 0.1), (4, 0.12), (6, 0.13)]) if codes else 0
    most = 0.75 if count == 1 else 0.55 if count == 2 else 0.36  # noqa: PLR2004
    least = max(14.0, 0.07 * max(size))
    sheet = make_page(rng, (wide, high), count, (least, max(least + 1, most * max(size))))
    angle, tilt = float(rng.normal(0, 0.07)), uniform(rng, 0, 0.4)
    if chance(rng, 0.2):
        angle, tilt = 0.0, 0.0
    if chance(rng, 0.15):
        angle += pick(rng, (0.5, 1.0, 1.5)) * np.pi
    bend = random_bend(rng, 0.6)
    draft = _draft(rng, size)
    for _ in range(4):
        at = (width * float(rng.normal(0.5, 0.08)), height * float(rng.normal(0.5, 0.08)))
        if add_page(rng, draft, sheet, Pose(homography(rng, (wide, high), at, angle, tilt), bend)):
            break
    return draft


def _close_scene(rng: np.random.Generator, symbol: Symbol, size: tuple[int, int]) -> Draft:
    """One code that covers most of the image."""
    draft = _draft(rng, size)
    place_close(rng, draft, symbol)
    return draft


def _close_size(rng: np.random.Generator, symbol: Symbol, max_side: int) -> tuple[int, int]:
    """Draws an image size, often in proportions like the symbol's; (height, width)."""
    if chance(rng, 0.4):
        return canvas_size(rng, max_side)
    rows, columns = symbol.bits.shape
    shape = columns / (rows * symbol.stretch) * log_uniform(rng, 0.7, 1.4)
    shape = min(max(shape, 0.5), 5.0)
    side = max_side if chance(rng, 0.5) else int(log_uniform(rng, max_side * 0.35, max_side))
    if shape > 1:
        return max(32, int(side / shape)), side
    return side, max(32, int(side * shape))


def _clean_scene(rng: np.random.Generator, size: tuple[int, int] | None, max_side: int) -> Draft:
    """A flat, tight rendering that fills the whole image."""
    symbol = random_symbol(rng)
    quiet = quiet_zone(rng, 0.4)
    rows, columns = symbol.bits.shape
    cells = max(columns + quiet[0] + quiet[2], rows * symbol.stretch + quiet[1] + quiet[3])
    if chance(rng, 0.6):
        side = log_uniform(rng, min(64, max_side), max_side)
    else:
        side = uniform(rng, min(160, max_side), max_side)
    cell = max(0.8, side / cells)
    if cell > 2 and chance(rng, 0.6):  # noqa: PLR2004
        cell = float(int(cell))
    extras = symbol.label == LINEAR and chance(rng, 0.4)
    sheet = make_label(rng, symbol, cell, Layout(quiet, extras, chance(rng, 0.75)))
    sheet = _quarter_turns(sheet, weighted(rng, [(0, 0.8), (1, 0.08), (2, 0.05), (3, 0.07)]))
    limit = max_side if size is None else min(size)
    sheet = _shrink(sheet, limit)
    draft = Draft(np.ascontiguousarray(sheet.colour))
    for mark in sheet.marks:
        draft.boxes.append(np.array(mark.box, np.float32))
        draft.marks.append(mark)
    return draft if size is None else _embed(rng, draft, size)


def _quarter_turns(sheet: Sheet, turns: int) -> Sheet:
    """Rotates a sheet by quarter turns, boxes included."""
    for _ in range(turns):
        wide = sheet.colour.shape[1]
        marks = tuple(
            Mark((m.box[1], wide - m.box[2], m.box[3], wide - m.box[0]), m.label, m.payload, m.cell)
            for m in sheet.marks
        )
        sheet = Sheet(np.rot90(sheet.colour), np.rot90(sheet.opacity), marks)
    return Sheet(
        np.ascontiguousarray(sheet.colour), np.ascontiguousarray(sheet.opacity), sheet.marks
    )


def _shrink(sheet: Sheet, limit: int) -> Sheet:
    """Scales a sheet down so that its longest side is at most `limit`."""
    high, wide = sheet.colour.shape[:2]
    scale = min(1.0, limit / max(high, wide))
    if scale == 1.0:
        return sheet
    width, height = max(8, int(wide * scale)), max(8, int(high * scale))
    sx, sy = width / wide, height / high
    marks = tuple(
        Mark(
            (m.box[0] * sx, m.box[1] * sy, m.box[2] * sx, m.box[3] * sy),
            m.label, m.payload, m.cell * scale,
        )
        for m in sheet.marks
    )  # fmt: skip
    return Sheet(resize(sheet.colour, width, height), resize(sheet.opacity, width, height), marks)


def _embed(rng: np.random.Generator, draft: Draft, size: tuple[int, int]) -> Draft:
    """Puts a finished small image into one of a given size (height, width)."""
    high, wide = draft.image.shape[:2]
    edge = draft.image[:1].reshape(-1, 3).mean(0)
    out = np.broadcast_to(edge, (*size, 3)).astype(np.uint8)
    top, left = integer(rng, 0, size[0] - high), integer(rng, 0, size[1] - wide)
    out[top : top + high, left : left + wide] = draft.image
    shift = np.array([left, top, left, top], np.float32)
    return Draft(out, [box + shift for box in draft.boxes], draft.marks)


def negative_scene(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """An image without any code."""
    kind = weighted(rng, [("whole", 0.3), ("parts", 0.42), ("bare", 0.12), ("page", 0.16)])
    if kind == "page":
        return _page_scene(rng, size, codes=False)
    if kind == "whole":
        sheet = distractor(rng, size[1], size[0])
        draft = Draft(np.ascontiguousarray(sheet.colour))
        for _ in range(integer(rng, 0, 2)):
            place_distractor(rng, draft, 0.1, 0.5)
        return draft
    draft = _draft(rng, size)
    for _ in range(integer(rng, 1, 5) if kind == "parts" else 0):
        place_distractor(rng, draft, 0.1, 0.9)
    return draft


def finish(rng: np.random.Generator, draft: Draft, strength: float) -> Scene:
    """Adds light, covers and camera flaws and returns the scene."""
    image = draft.image
    cell = min((mark.cell for mark in draft.marks), default=uniform(rng, 0.8, 4))
    if chance(rng, 0.85 * strength):
        image = optics.light(rng, image)
    if draft.boxes and chance(rng, 0.03 + 0.09 * strength):
        box = pick(rng, draft.boxes)
        image = optics.cover(rng, image, (box[0], box[1], box[2], box[3]))
    image = optics.camera(rng, image, min(cell, 8.0), strength)
    boxes = np.stack(draft.boxes) if draft.boxes else np.zeros((0, 4), np.float32)
    height, width = image.shape[:2]
    boxes = np.clip(boxes, 0, np.array([width, height, width, height])).astype(np.float32)
    labels = np.array([mark.label for mark in draft.marks], np.int64)
    return Scene(image, boxes, labels, tuple(mark.payload for mark in draft.marks))


def generate_scene(
    rng: np.random.Generator, size: tuple[int, int] | None = None, max_side: int = 384
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
    if kind == "clean":
        draft = _clean_scene(rng, size, max_side)
        return finish(rng, draft, 0.35 if chance(rng, 0.7) else 0.0)
    shape = size or canvas_size(rng, max_side)
    draft = negative_scene(rng, shape) if kind == "none" else _draft(rng, shape)
    for _ in range(4):
        if draft.marks or kind == "none":
            break
        if kind == "close":
            symbol, _ = symbol_for(rng, 0.8 * max(shape), 1.0 if chance(rng, 0.7) else 0.6)
            draft = _close_scene(rng, symbol, size or _close_size(rng, symbol, max_side))
        else:
            draft = (_label_scene if kind == "label" else _page_scene)(rng, shape)
    return finish(rng, draft, 1.0 if chance(rng, 0.85) else 0.2)
