"""Patterns that resemble codes or printed matter."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from model.training.codes import lettering
from model.training.codes.common import (
    Bytes,
    Float,
    chance,
    integer,
    log_uniform,
    pick,
    resize,
    smooth_noise,
    to_bytes,
    uniform,
)
from model.training.codes.labels import Sheet, make_blank_label
from model.training.codes.palette import colours
from model.training.codes.surfaces import photo

_Ink = Callable[[np.random.Generator, int, int], Float]


def _grids(width: int, height: int) -> tuple[Float, Float]:
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    return xs, ys


def chessboard(rng: np.random.Generator, width: int, height: int) -> Float:
    """Alternating squares; [height, width] ink 0..1."""
    xs, ys = _grids(width, height)
    step = max(2.0, max(width, height) / log_uniform(rng, 4, 60))
    tall = step * (1.0 if chance(rng, 0.7) else uniform(rng, 0.4, 2))
    return ((xs // step + ys // tall) % 2).astype(np.float32)


def stripes(rng: np.random.Generator, width: int, height: int) -> Float:
    """Evenly repeating stripes or fence slats; [height, width] ink 0..1."""
    xs, ys = _grids(width, height)
    period = max(3.0, max(width, height) / log_uniform(rng, 3, 70))
    along = xs if chance(rng, 0.6) else ys
    if chance(rng, 0.2):
        along = (xs + ys * uniform(rng, 0.3, 2)).astype(np.float32)
    phase = (along / period) % 1
    if chance(rng, 0.4):
        return np.asarray(0.5 + 0.5 * np.sin(phase * 2 * np.pi), np.float32)
    ink = (phase < uniform(rng, 0.15, 0.85)).astype(np.float32)
    if chance(rng, 0.4):
        rail = max(2, height // 12)
        for at in (0.2, 0.75):
            ink[int(height * at) : int(height * at) + rail] = 1
    return ink


def grid(rng: np.random.Generator, width: int, height: int) -> Float:
    """Thin ruled lines as squared paper or tiles; [height, width] ink 0..1."""
    xs, ys = _grids(width, height)
    step = max(4.0, max(width, height) / log_uniform(rng, 4, 40))
    thin = uniform(rng, 0.06, 0.25)
    return (((xs / step) % 1 < thin) | ((ys / step) % 1 < thin)).astype(np.float32)


def bricks(rng: np.random.Generator, width: int, height: int) -> Float:
    """Staggered bricks with mortar; [height, width] ink 0..1."""
    xs, ys = _grids(width, height)
    tall = max(4.0, height / log_uniform(rng, 4, 20))
    wide = tall * uniform(rng, 1.5, 3.5)
    row = ys // tall
    joint = (((xs + (row % 2) * wide / 2) / wide) % 1 < 0.06) | ((ys / tall) % 1 < 0.12)  # noqa: PLR2004
    shade = rng.uniform(0.5, 1, (int(height / tall) + 2, int(width / wide) + 3)).astype("f")
    column = ((xs + (row % 2) * wide / 2) // wide).astype(int)
    return np.where(joint, 0, shade[row.astype(int), column]).astype(np.float32)


def halftone(rng: np.random.Generator, width: int, height: int) -> Float:
    """A screen of dots whose size follows a smooth field; [height, width] ink 0..1."""
    xs, ys = _grids(width, height)
    pitch = max(3.0, max(width, height) / log_uniform(rng, 8, 80))
    angle = uniform(rng, 0, np.pi / 2) if chance(rng, 0.6) else 0.0
    u = (xs * np.cos(angle) + ys * np.sin(angle)) / pitch
    v = (ys * np.cos(angle) - xs * np.sin(angle)) / pitch
    distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    radius = 0.35 + 0.2 * smooth_noise(rng, width, height, 3) if chance(rng, 0.7) else 0.33
    return np.asarray(np.clip((radius - distance) * pitch + 0.5, 0, 1), np.float32)


def crossword(rng: np.random.Generator, width: int, height: int) -> Float:
    """Ruled squares, some black, some with a letter; [height, width] ink 0..1."""
    count = integer(rng, 6, 15)
    step = max(6, min(width, height) // count)
    ink = np.zeros((height, width), np.float32)
    black = rng.random((height // step + 1, width // step + 1)) < uniform(rng, 0.1, 0.25)
    for (i, j), filled in np.ndenumerate(black):
        x, y = j * step, i * step
        cv2.rectangle(ink, (x, y), (x + step, y + step), 1.0, -1 if filled else 1)
        if not filled and step >= 10 and chance(rng, 0.3):  # noqa: PLR2004
            text = pick(rng, "ABCDEFGHIKLMNOPRSTUVW123456789")
            lettering.draw_line(rng, ink, text, (x + 2, y + 2, x + step - 2, y + step - 2))
    return ink


def table(rng: np.random.Generator, width: int, height: int) -> Float:
    """A ruled table; [height, width] ink 0..1."""
    ink = np.zeros((height, width), np.float32)
    lettering.draw_table(rng, ink, (2, 2, width - 2, height - 2))
    return ink


def page(rng: np.random.Generator, width: int, height: int) -> Float:
    """Lines of text; [height, width] ink 0..1."""
    ink = np.zeros((height, width), np.float32)
    line = max(5, int(max(width, height) / log_uniform(rng, 4, 45)))
    edge = integer(rng, 0, max(1, width // 12))
    lettering.draw_paragraph(rng, ink, (edge, edge, width - edge, height - edge), line)
    return ink


def lone_finders(rng: np.random.Generator, width: int, height: int) -> Float:
    """Single nested squares or rings, such as icons; [height, width] ink 0..1."""
    ink = np.zeros((height, width), np.float32)
    side = max(8, min(width, height))
    for _ in range(integer(rng, 1, 2)):
        outer = int(side * uniform(rng, 0.12, 0.45))
        x, y = integer(rng, outer, max(outer, width - outer)), integer(rng, outer, height)
        rings = integer(rng, 2, 4)
        for ring in range(rings * 2, 0, -2):
            reach = max(1, outer * ring // (rings * 2))
            fill = 1.0 if (ring // 2) % 2 else 0.0
            if chance(rng, 0.7):
                cv2.rectangle(ink, (x - reach, y - reach), (x + reach, y + reach), fill, -1)
            else:
                cv2.circle(ink, (x, y), reach, fill, -1)
    return ink


def maze(rng: np.random.Generator, width: int, height: int) -> Float:
    """Random cells with a torn rim, blotches or few big cells; [height, width] ink 0..1.

    Real codes have straight rims and fixed patterns; none of these has.
    """
    kind = integer(rng, 0, 2)
    across = log_uniform(rng, 3, 7) if kind == 0 else log_uniform(rng, 12, 70)
    cell = max(2, int(max(width, height) / across))
    rows, columns = height // cell + 2, width // cell + 2
    cells = (rng.random((rows, columns)) < uniform(rng, 0.15, 0.8)).astype(np.float32)
    if kind == 1:
        cells = (smooth_noise(rng, columns, rows, columns / 2.5) > 0).astype(np.float32)
        smooth = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(np.clip(smooth, 0, 1), np.float32)
    if kind == 2:  # noqa: PLR2004
        ys, xs = np.mgrid[0:rows, 0:columns]
        side = np.minimum(xs, columns - 1 - xs) / columns
        rim = np.minimum(side, np.minimum(ys, rows - 1 - ys) / rows)
        cells *= rim + smooth_noise(rng, columns, rows, 5) * 0.25 > 0.12  # noqa: PLR2004
    full = resize(cells, columns * cell, rows * cell, nearest=True)
    return np.asarray(full[:height, :width], np.float32)


def facade(rng: np.random.Generator, width: int, height: int) -> Float:
    """Rows of windows, some lit; [height, width] ink 0..1."""
    ink = np.full((height, width), uniform(rng, 0, 0.3), np.float32)
    columns, rows = integer(rng, 3, 14), integer(rng, 3, 14)
    step_x, step_y = width / columns, height / rows
    share_x, share_y = uniform(rng, 0.4, 0.8), uniform(rng, 0.4, 0.8)
    for i in range(rows):
        for j in range(columns):
            x, y = int((j + 0.5) * step_x), int((i + 0.5) * step_y)
            dx, dy = int(step_x * share_x / 2), int(step_y * share_y / 2)
            shade = uniform(rng, 0.5, 1.0)
            cv2.rectangle(ink, (x - dx, y - dy), (x + dx, y + dy), shade, -1)
    return ink


def emblem(rng: np.random.Generator, width: int, height: int) -> Float:
    """Overlapping simple shapes, such as a logo; [height, width] ink 0..1."""
    ink = np.zeros((height, width), np.float32)
    reach = max(4, min(width, height) // 2)
    for _ in range(integer(rng, 2, 5)):
        x, y = integer(rng, 0, width), integer(rng, 0, height)
        size, fill = integer(rng, 2, reach), float(chance(rng, 0.7))
        kind = integer(rng, 0, 2)
        if kind == 0:
            cv2.circle(ink, (x, y), size, fill, pick(rng, (-1, -1, max(1, size // 4))))
        elif kind == 1:
            cv2.rectangle(ink, (x, y), (x + size, y + size), fill, pick(rng, (-1, 2)))
        else:
            points = np.array([x, y]) + rng.uniform(-size, size, (4, 2))
            cv2.fillPoly(ink, [points.astype(np.int32)], fill, cv2.LINE_AA)
    return ink


_INKS: tuple[_Ink, ...] = (
    chessboard, stripes, stripes, grid, bricks, halftone, crossword, table, page, page,
    lone_finders, maze, maze, facade, emblem,
)  # fmt: skip


def distractor(rng: np.random.Generator, width: int, height: int) -> Sheet:
    """Makes a sheet that shows something code-like or printed, but no code.

    Args:
        rng: Source of randomness.
        width: Pixels across, at least 8.
        height: Pixels down, at least 8.

    Returns:
        A sheet without marks, [height, width].
    """
    width, height = max(8, width), max(8, height)
    kind = uniform(rng, 0, 1)
    if kind < 0.12:  # noqa: PLR2004
        return make_blank_label(rng, width, height)
    whole = np.ones((height, width), np.float32)
    if kind < 0.2:  # noqa: PLR2004
        return Sheet(photo(rng, width, height), whole, ())
    ink = pick(rng, _INKS)(rng, width, height)
    paper, pigment = colours(rng, chance(rng, 0.4))
    colour: Bytes = to_bytes(np.asarray(paper + (pigment - paper) * ink[..., None], np.float32))
    return Sheet(colour, whole if chance(rng, 0.8) else ink, ())
