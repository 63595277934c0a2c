"""Labels of one design next to each other, as on shelves, trays and packing lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.training.codes.common import chance, integer, to_bytes, uniform, weighted
from model.training.codes.labels import Layout, Mark, Sheet, make_label, quiet_zone
from model.training.codes.palette import colours
from model.training.codes.symbols import CLASS_NAMES, LINEAR, Symbol, random_symbol

_LEAST_CELL = 0.9  # pixels
_TRIES = 10


def _alike(rng: np.random.Generator, symbol: Symbol) -> Symbol:
    """Draws another code of the same kind and size; the same one if there is none."""
    for _ in range(_TRIES):
        other = random_symbol(rng, symbol.label)
        if other.kind == symbol.kind and other.bits.shape[1] == symbol.bits.shape[1]:
            return other
    return symbol


def _symbols(rng: np.random.Generator, count: int) -> list[Symbol]:
    label = LINEAR if chance(rng, 0.7) else integer(rng, 0, len(CLASS_NAMES) - 1)
    first = random_symbol(rng, label)
    if chance(rng, 0.4):
        return [first] * count
    return [first, *(_alike(rng, first) for _ in range(count - 1))]


def _joined(rng: np.random.Generator, sheets: Sequence[Sheet], columns: int) -> Sheet:
    """Lays sheets out in rows of some columns, on a board or with nothing between them."""
    high = max(sheet.colour.shape[0] for sheet in sheets)
    wide = max(sheet.colour.shape[1] for sheet in sheets)
    across, down = (round(side * uniform(rng, 0.01, 0.3)) for side in (wide, high))
    rows = -(-len(sheets) // columns)
    shape = rows * (high + down) + down, columns * (wide + across) + across
    colour = np.broadcast_to(colours(rng, crisp=False)[0], (*shape, 3)).astype(np.uint8)
    has_board = chance(rng, 0.6)
    opacity = np.full(shape, float(has_board), np.float32)
    marks: list[Mark] = []
    for number, sheet in enumerate(sheets):
        top = down + (number // columns) * (high + down)
        left = across + (number % columns) * (wide + across)
        tall, broad = sheet.opacity.shape
        area = np.s_[top : top + tall, left : left + broad]
        if has_board:
            cover = sheet.opacity[..., None]
            colour[area] = to_bytes(colour[area] * (1 - cover) + sheet.colour * cover)
        else:
            colour[area], opacity[area] = sheet.colour, sheet.opacity
        for mark in sheet.marks:
            x0, y0, x1, y1 = mark.box
            box = (x0 + left, y0 + top, x1 + left, y1 + top)
            marks.append(Mark(box, mark.label, mark.payload, mark.cell))
    return Sheet(colour, opacity, tuple(marks))


def row_of_labels(rng: np.random.Generator, side: float) -> Sheet:
    """Makes two to eight labels of one design.

    Args:
        rng: Source of randomness.
        side: Longest side of all labels together, in pixels, about.
    """
    columns = weighted(rng, [(1, 0.2), (2, 0.3), (3, 0.3), (4, 0.2)])
    rows = weighted(rng, [(1, 0.6), (2, 0.4)]) if columns > 1 else integer(rng, 2, 4)
    symbols = _symbols(rng, columns * rows - (rows > 1 and columns > 1 and chance(rng, 0.3)))
    high, wide = symbols[0].bits.shape
    quiet = quiet_zone(rng, 0.1)
    high = round(high * symbols[0].stretch + quiet[1] + quiet[3]) * rows
    wide = round(wide + quiet[0] + quiet[2]) * columns
    cell = max(side / (1.3 * max(high, wide)), _LEAST_CELL)
    layout = Layout(quiet, chance(rng, 0.7), chance(rng, 0.3), colours(rng, crisp=False))
    design = integer(rng, 0, 2**31)
    sheets = [make_label(np.random.default_rng(design), each, cell, layout) for each in symbols]
    return _joined(rng, sheets, columns)
