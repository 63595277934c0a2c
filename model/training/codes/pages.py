"""Whole printed pages: several codes among text, tables and emblems."""

from __future__ import annotations

import numpy as np

from model.training.codes import distractors, lettering
from model.training.codes.common import Float, chance, integer, log_uniform, pick, uniform
from model.training.codes.labels import (
    Layout,
    Mark,
    Sheet,
    add_words,
    make_label,
    paint,
    quiet_zone,
)
from model.training.codes.palette import colours
from model.training.codes.symbols import random_symbol

Box = tuple[int, int, int, int]


def clear_of(box: Box, taken: list[Box]) -> bool:
    """Whether a box overlaps none of the taken ones."""
    return all(
        box[0] >= other[2] or box[2] <= other[0] or box[1] >= other[3] or box[3] <= other[1]
        for other in taken
    )


def _labels(
    rng: np.random.Generator, count: int, sides: tuple[float, float], page: Layout
) -> list[Sheet]:
    """Prints `count` labels with codes of `sides[0]..sides[1]` pixels; often of one class."""
    same = random_symbol(rng).label if chance(rng, 0.5) else None
    side = log_uniform(rng, *sides)
    sheets: list[Sheet] = []
    for _ in range(count):
        symbol = random_symbol(rng, same)
        rows, columns = symbol.bits.shape
        if chance(rng, 0.6):
            side = log_uniform(rng, *sides)
        cell = max(0.8, side / max(columns, rows * symbol.stretch))
        quiet = quiet_zone(rng, 0.1)
        own = None if chance(rng, 0.15) else page.palette
        layout = Layout(quiet, chance(rng, 0.7), page.crisp or chance(rng, 0.2), own)
        sheets.append(make_label(rng, symbol, cell, layout))
    return sheets


def _spots(
    rng: np.random.Generator, sheets: list[Sheet], size: tuple[int, int]
) -> list[Box | None]:
    """Finds a place for each sheet on a page of (width, height), None if there is none."""
    taken: list[Box] = []
    spots: list[Box | None] = []
    columns = [int(size[0] * v) for v in sorted(rng.uniform(0.02, 0.7, 2))]
    for sheet in sheets:
        high, wide = sheet.colour.shape[:2]
        spot: Box | None = None
        for _ in range(12):
            most = size[0] - wide
            left = pick(rng, columns) if chance(rng, 0.4) else integer(rng, 0, max(0, most))
            top = integer(rng, 0, max(0, size[1] - high))
            box = (left, top, left + wide, top + high)
            if box[2] <= size[0] and box[3] <= size[1] and clear_of(box, taken):
                spot = box
                taken.append(box)
                break
        spots.append(spot)
    return spots


def _fill(rng: np.random.Generator, size: tuple[int, int], taken: list[Box]) -> Float:
    """Prints text, tables and emblems in free places; returns ink [height, width]."""
    width, height = size
    ink = np.zeros((height, width), np.float32)
    for _ in range(integer(rng, 0, 10)):
        wide = int(width * log_uniform(rng, 0.12, 0.9))
        high = int(height * log_uniform(rng, 0.03, 0.35))
        left = integer(rng, 2, max(2, width - wide))
        top = integer(rng, 2, max(2, height - high))
        box = (left, top, min(width - 2, left + wide), min(height - 2, top + high))
        if box[2] - box[0] < 12 or box[3] - box[1] < 8 or not clear_of(box, taken):  # noqa: PLR2004
            continue
        taken.append(box)
        if chance(rng, 0.75):
            add_words(rng, ink, box)
        elif chance(rng, 0.6):
            lettering.draw_table(rng, ink, box)
        else:
            area = ink[box[1] : box[3], box[0] : box[2]]
            area[...] = distractors.emblem(rng, area.shape[1], area.shape[0])
    return ink


def make_page(
    rng: np.random.Generator, size: tuple[int, int], count: int, sides: tuple[float, float]
) -> Sheet:
    """Prints a page.

    Args:
        rng: Source of randomness.
        size: Page width and height in pixels.
        count: How many codes to try to set; 0 for a page without any.
        sides: Least and greatest longer side of a code in pixels.

    Returns:
        The page, opaque, with one mark for each code set.
    """
    crisp = chance(rng, 0.3)
    page = Layout((0, 0, 0, 0), False, crisp, colours(rng, crisp))
    sheets = _labels(rng, count, sides, page)
    spots = _spots(rng, sheets, size)
    ink = _fill(rng, size, [spot for spot in spots if spot])
    colour, opacity = paint(rng, ink, page)
    marks: list[Mark] = []
    for sheet, spot in zip(sheets, spots, strict=True):
        if spot is None:
            continue
        left, top, right, bottom = spot
        colour[top:bottom, left:right] = sheet.colour
        for mark in sheet.marks:
            box = tuple(v + (left, top)[i % 2] for i, v in enumerate(mark.box))
            marks.append(
                Mark((box[0], box[1], box[2], box[3]), mark.label, mark.payload, mark.cell)
            )
    if chance(rng, 0.2):
        colour[...] = np.clip(colour * uniform(rng, 0.8, 1.0), 0, 255)
    return Sheet(colour, opacity, tuple(marks))
