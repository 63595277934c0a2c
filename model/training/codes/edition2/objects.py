"""Objects that carry codes: labels, parcels, packs, boards and sheets of labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.training.codes.common import (
    Bytes,
    Float,
    chance,
    integer,
    log_uniform,
    pick,
    uniform,
    weighted,
)
from model.training.codes.edition2.ink import font, sentence, tone, word, write
from model.training.codes.edition2.structures import circuit
from model.training.codes.edition2.surroundings import pattern
from model.training.codes.labels import Layout, Mark, Sheet, make_label, quiet_zone
from model.training.codes.pages import Box, clear_of
from model.training.codes.surfaces import background, plain
from model.training.codes.symbols import LINEAR, PDF417, Symbol, random_symbol

MIN_CELL = 1.15  # pixels; finer modules cannot be read even in the image itself
_TRIES = 7


def small_symbol(rng: np.random.Generator, side: float) -> tuple[Symbol, float]:
    """Draws a symbol for a longer side of about `side` pixels.

    Returns:
        The symbol, with as few modules as several tries gave where they would be too fine, and its
        cell size in pixels, at least `MIN_CELL`.
    """
    symbol = random_symbol(rng)
    for _ in range(_TRIES):
        if side / _modules(symbol) >= MIN_CELL:
            break
        other = random_symbol(rng, symbol.label)
        if _modules(other) < _modules(symbol):
            symbol = other
    if symbol.label == LINEAR and symbol.stretch == 1.0 and chance(rng, 0.5):
        symbol = _lower(rng, symbol)
    return symbol, max(side / _modules(symbol), MIN_CELL)


def _modules(symbol: Symbol) -> float:
    rows, columns = symbol.bits.shape
    return float(max(columns, rows * symbol.stretch))


def _lower(rng: np.random.Generator, symbol: Symbol) -> Symbol:
    """Cuts bars to a lower height, as on shelf labels and small packs."""
    rows = symbol.bits.shape[0]
    kept = max(symbol.guard + 6, int(rows * uniform(rng, 0.35, 1)))
    return symbol if kept >= rows else replace(symbol, bits=symbol.bits[rows - kept :])


def code_label(rng: np.random.Generator, side: float) -> Sheet:
    """Prints a label with one code whose longer side has about `side` pixels."""
    symbol, cell = small_symbol(rng, side)
    matrix = symbol.label not in (LINEAR, PDF417)
    quiet = quiet_zone(rng, 0.06 if matrix else 0.1)
    return make_label(rng, symbol, cell, Layout(quiet, chance(rng, 0.55), chance(rng, 0.2)))


def _surface(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Draws the face of an object."""
    kind = weighted(
        rng, [("paper", 0.36), ("card", 0.2), ("any", 0.2), ("pattern", 0.14), ("board", 0.1)]
    )
    if kind == "board":
        return circuit(rng, width, height)
    if kind == "pattern":
        return pattern(rng, width, height)
    if kind == "any":
        return background(rng, width, height)
    if kind == "card":
        shade = rng.uniform([150, 105, 60], [215, 175, 130])
        grain = rng.standard_normal((height, width, 1), np.float32) * uniform(rng, 1, 7)
        return np.clip(shade + grain, 0, 255).astype(np.uint8)
    if chance(rng, 0.3):
        return plain(rng, width, height)
    return np.full((height, width, 3), uniform(rng, 205, 253), np.uint8)


def _letter(rng: np.random.Generator, colour: Bytes, taken: list[Box]) -> None:
    """Sets words and blocks of colour in free places."""
    height, width = colour.shape[:2]
    dark = colour.mean() > 120  # noqa: PLR2004
    shade = tone(rng) * 0.35 if dark else 255 - tone(rng) * 0.35
    ink = np.zeros((height, width), np.float32)
    for _ in range(integer(rng, 0, 6)):
        size = int(max(6, height * log_uniform(rng, 0.03, 0.2)))
        text = word(rng).upper() if chance(rng, 0.3) else sentence(rng, integer(rng, 1, 5))
        left, top = integer(rng, 1, max(1, width * 3 // 4)), integer(rng, 1, max(1, height - size))
        box = (left, top, min(width, left + int(size * 0.62 * len(text))), top + int(size * 1.3))
        if clear_of(box, taken):
            taken.append(box)
            write(ink[:, : box[2]], text, (left, top), font(rng, size))
    colour[...] = np.clip(colour + (shade - colour) * ink[..., None], 0, 255).astype(np.uint8)


def _put(colour: Bytes, label: Sheet, at: tuple[int, int]) -> tuple[Mark, ...]:
    """Sticks a label on a face; returns its marks there."""
    left, top = at
    high, wide = label.colour.shape[:2]
    area = colour[top : top + high, left : left + wide]
    cover = label.opacity[..., None]
    area[...] = (area + (label.colour - area.astype(np.float32)) * cover + 0.5).astype(np.uint8)
    return tuple(
        replace(m, box=(m.box[0] + left, m.box[1] + top, m.box[2] + left, m.box[3] + top))
        for m in label.marks
    )


def carrier(rng: np.random.Generator, count: int, sides: tuple[float, float], room: float) -> Sheet:
    """Makes an object with up to `count` codes.

    Args:
        rng: Source of randomness.
        count: How many codes to try to place, at least 1.
        sides: Least and greatest longer side of a code in pixels.
        room: Area of the face as a multiple of that of the labels, at least 1.

    Returns:
        The face of the object, with one mark per code.
    """
    labels = [code_label(rng, log_uniform(rng, *sides)) for _ in range(count)]
    if chance(rng, 0.3):  # a series of equal size
        labels = [
            labels[0],
            *(code_label(rng, labels[0].colour.shape[1] * 0.7) for _ in labels[1:]),
        ]
    area = room * sum(label.colour.shape[0] * label.colour.shape[1] for label in labels)
    shape = log_uniform(rng, 0.5, 2.2)
    width = max(int((area * shape) ** 0.5), *(label.colour.shape[1] + 4 for label in labels))
    height = max(int(area / width), *(label.colour.shape[0] + 4 for label in labels))
    colour = np.ascontiguousarray(_surface(rng, width, height))
    marks: list[Mark] = []
    taken: list[Box] = []
    lines = [int(width * v) for v in sorted(rng.uniform(0.02, 0.8, 3))]
    for label in labels:
        high, wide = label.colour.shape[:2]
        for _ in range(14):
            left = pick(rng, lines) if chance(rng, 0.3) else integer(rng, 1, width - wide - 1)
            top = integer(rng, 1, height - high - 1)
            box = (left, top, left + wide, top + high)
            if box[2] < width and clear_of(box, taken):
                taken.append(box)
                marks += _put(colour, label, (left, top))
                break
    _letter(rng, colour, taken)
    return Sheet(colour, _cover(rng, height, width, marks), tuple(marks))


def _cover(rng: np.random.Generator, height: int, width: int, marks: list[Mark]) -> Float:
    """Opacity of a face; sometimes its corners are cut where no code is."""
    cover = np.ones((height, width), np.float32)
    reach = int(min(height, width) * 0.06)
    near = any(m.box[0] < reach or m.box[1] < reach for m in marks)
    if reach > 1 and not near and chance(rng, 0.3):
        cover[:reach, :reach] = np.add.outer(np.arange(reach), np.arange(reach)) >= reach
    return cover
