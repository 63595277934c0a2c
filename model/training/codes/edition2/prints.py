"""Printed and displayed things without codes: text, puzzles, boards, pixel art, look-alikes."""

from __future__ import annotations

import cv2
import numpy as np

from model.training.codes.common import (
    Bytes,
    Float,
    chance,
    integer,
    log_uniform,
    pick,
    resize,
    smooth_noise,
    uniform,
)
from model.training.codes.edition2.ink import (
    blend,
    font,
    grids,
    palette,
    sentence,
    textured,
    tone,
    two_tones,
    word,
    write,
)
from model.training.codes.surfaces import photo

Box = tuple[int, int, int, int]


def _paper(rng: np.random.Generator) -> tuple[Float, Float]:
    """Draws the colours of ink and paper."""
    if chance(rng, 0.7):
        paper = np.full(3, uniform(rng, 160, 250), np.float32) - rng.uniform(0, 18, 3)
        return np.full(3, uniform(rng, 5, 70), np.float32), np.asarray(paper, np.float32)
    dark, light = two_tones(rng, 90)
    return (dark, light) if chance(rng, 0.7) else (light, dark)


def _printed(rng: np.random.Generator, ink: Float) -> Bytes:
    pigment, paper = _paper(rng)
    return textured(rng, blend(ink, pigment, paper), uniform(rng, 0, 6))


def _column(rng: np.random.Generator, ink: Float, box: Box, size: int) -> None:
    """Sets lines of text in a box."""
    left, top, right, bottom = box
    face = font(rng, size)
    spacing = size * uniform(rng, 1.15, 1.7)
    words = max(1, int((right - left) / (size * 3.0)))
    y = float(top)
    shade = uniform(rng, 0.75, 1.0)
    while y + size < bottom:
        text = sentence(rng, words if chance(rng, 0.85) else max(1, words // 2))
        line = np.zeros((min(int(size * 1.6), ink.shape[0] - int(y)), right - left), np.float32)
        indent = size * 2 if chance(rng, 0.1) else 0
        write(line, text, (indent, 0), face)
        area = ink[int(y) : int(y) + line.shape[0], left:right]
        np.maximum(area, line[:, : area.shape[1]] * shade, out=area)
        y += spacing * (1 if chance(rng, 0.93) else 1.8)


def text_page(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """A page of running text, from far to very close; [height, width, 3]."""
    ink = np.zeros((height, width), np.float32)
    size = int(max(width, height) / log_uniform(rng, 9, 75))
    margin = integer(rng, 0, width // 10)
    _column(rng, ink, (margin, integer(rng, 0, 12), width - margin // 2, height), max(6, size))
    return _printed(rng, ink)


def newspaper(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Columns of text under headlines, with a picture; [height, width, 3]."""
    ink = np.zeros((height, width), np.float32)
    count = integer(rng, 2, 6)
    wide = width // count
    size = max(5, int(width / log_uniform(rng, 45, 110)))
    pigment, paper = _paper(rng)
    pictures: list[Box] = []
    for number in range(count):
        y, left = integer(rng, 0, height // 6), number * wide + size // 2
        right = (number + 1) * wide - size // 2
        while y < height - size * 3 and right - left > 2 * size:
            kind = uniform(rng, 0, 1)
            tall = integer(rng, size * 3, max(size * 3, height // 3))
            if kind < 0.25:  # noqa: PLR2004
                face = font(rng, int(size * uniform(rng, 1.8, 3.5)))
                write(ink[:, :right], sentence(rng, 2), (left, y), face)
                y += int(size * 4.5)
            elif kind < 0.4 and y + tall < height:  # noqa: PLR2004
                pictures.append((left, y, right, y + tall))
                y += tall + size
            else:
                _column(rng, ink, (left, y, right, min(height, y + tall)), size)
                y += tall + size
        if chance(rng, 0.4):
            ink[:, min(width - 1, right + size // 2)] = 0.8
    image = blend(ink, pigment, paper)
    for left, top, right, bottom in pictures:
        piece = photo(rng, right - left, bottom - top)
        image[top:bottom, left:right] = piece if chance(rng, 0.5) else piece.mean(2)[..., None]
    return textured(rng, image, uniform(rng, 0, 6))


def puzzle(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """A crossword, number puzzle or picture puzzle; [height, width, 3]."""
    ink = np.zeros((height, width), np.float32)
    step = max(5, int(max(width, height) / log_uniform(rng, 9, 34)))
    kind = pick(rng, ("crossword", "numbers", "pictures"))
    filled = uniform(rng, 0.12, 0.3) if kind != "pictures" else uniform(rng, 0.35, 0.6)
    black = rng.random((height // step + 1, width // step + 1)) < filled
    face = font(rng, int(step * uniform(rng, 0.45, 0.7)))
    small = font(rng, max(5, int(step * 0.3)))
    for (i, j), is_black in np.ndenumerate(black):
        x, y = j * step, i * step
        if is_black and kind != "numbers":
            cv2.rectangle(ink, (x, y), (x + step, y + step), 1.0, -1)
            continue
        cv2.rectangle(ink, (x, y), (x + step, y + step), 1.0, 1)
        if step < 9:  # noqa: PLR2004
            continue
        if kind == "crossword" and chance(rng, 0.3):
            write(ink, str(integer(rng, 1, 99)), (x + 2, y + 2), small)
        elif kind == "numbers" and is_black:
            write(ink, str(integer(rng, 1, 9)), (x + step * 0.3, y + step * 0.2), face)
    return _printed(rng, ink)


def checkers(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """A chessboard or calibration board, sometimes with square markers; [height, width, 3]."""
    step = max(4, int(max(width, height) / log_uniform(rng, 5, 44)))
    rows, columns = height // step + 2, width // step + 2
    cells = (np.add.outer(np.arange(rows), np.arange(columns)) % 2).astype(np.float32)
    ink = np.asarray(resize(cells, columns * step, rows * step, nearest=True), np.float32)
    markers = step >= 24 and chance(rng, 0.4)  # noqa: PLR2004
    for i, j in np.argwhere(cells == 0) if markers else ():
        side = int(step * 0.66)
        count = integer(rng, 4, 6)
        bits = np.zeros((count + 2, count + 2), np.float32)
        bits[1:-1, 1:-1] = rng.random((count, count)) < 0.5  # noqa: PLR2004
        marker = np.asarray(resize(1 - bits, side, side, nearest=True), np.float32)
        top, left = i * step + (step - side) // 2, j * step + (step - side) // 2
        ink[top : top + side, left : left + side] = marker
    ink = np.ascontiguousarray(ink[:height, :width])
    if chance(rng, 0.4):  # a white margin
        edge = integer(rng, 4, max(5, min(width, height) // 6))
        frame = np.zeros_like(ink)
        frame[edge:-edge, edge:-edge] = ink[edge:-edge, edge:-edge]
        ink = frame
    return _printed(rng, ink)


def pixel_art(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Figures of large coloured pixels, each symmetrical; [height, width, 3]."""
    cell = max(3, int(max(width, height) / log_uniform(rng, 22, 110)))
    side = integer(rng, 8, 16)
    shades = np.concatenate([tone(rng)[None], palette(rng, integer(rng, 1, 6), 110)])
    figures: list[Float] = []
    for _ in range(integer(rng, 1, 4)):
        field = smooth_noise(rng, side, side, side / 2.2)
        half = field[:, : (side + 1) // 2] > uniform(rng, -0.3, 0.3)
        shown = np.concatenate([half, half[:, : side // 2][:, ::-1]], axis=1)
        colours = rng.integers(1, len(shades), (side, side))
        colours = np.where(chance(rng, 0.5), colours[0, 0], colours)
        figure = np.zeros((side + 2, side + 2), np.int64)
        figure[1:-1, 1:-1] = shown * colours
        figures.append(figure.astype(np.float32))
    rows, columns = height // (cell * (side + 2)) + 1, width // (cell * (side + 2)) + 1
    board = [
        np.concatenate([figures[integer(rng, 0, len(figures) - 1)] for _ in range(columns)], axis=1)
        for _ in range(rows)
    ]
    numbers = np.repeat(np.repeat(np.concatenate(board).astype(int), cell, 0), cell, 1)
    return textured(rng, shades[numbers[:height, :width]].astype(np.uint8), uniform(rng, 0, 5))


def dot_display(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Words on a display of lit dots, as on buses and stations; [height, width, 3]."""
    pitch = max(3, int(max(width, height) / log_uniform(rng, 45, 130)))
    rows, columns = height // pitch + 1, width // pitch + 1
    lit = np.zeros((rows, columns), np.float32)
    y, size = integer(rng, 0, 3), integer(rng, 8, 15)
    while y < rows:
        face = font(rng, size)
        write(lit, sentence(rng, 4).upper(), (integer(rng, 0, 8), y), face)
        y += size + integer(rng, 1, 5)
    glow = (lit > 0.45).astype(np.float32) * 0.9 + 0.1  # noqa: PLR2004
    glow = np.repeat(np.repeat(glow, pitch, 0), pitch, 1)[:height, :width]
    xs, ys = grids(width, height)
    distance = np.hypot(xs % pitch - pitch / 2 + 0.5, ys % pitch - pitch / 2 + 0.5)
    dot = np.clip(pitch * uniform(rng, 0.3, 0.5) - distance + 0.5, 0, 1)
    colour = rng.uniform([150, 60, 0], [255, 220, 255]).astype(np.float32)
    return blend(np.asarray(glow * dot, np.float32), colour, tone(rng) * 0.15)


def ruler(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rulers, scales and tape measures; [height, width, 3]."""
    ink = np.zeros((height, width), np.float32)
    top = 0
    while top < height:
        high = integer(rng, max(12, height // 9), max(13, height // 2))
        step = max(2.5, width / log_uniform(rng, 40, 140))
        face = font(rng, max(7, high // 5))
        for number in range(int(width / step) + 1):
            x = int(number * step)
            long = 0.5 if number % 10 == 0 else 0.36 if number % 5 == 0 else 0.24
            thick = 1 if step < 6 else 2  # noqa: PLR2004
            cv2.line(ink, (x, top), (x, top + int(high * long)), 1.0, thick)
            if number % 10 == 0:
                write(ink, str(number // 10), (x + 2, top + high * 0.55), face)
        top += high + integer(rng, 0, high)
    return _printed(rng, ink)


def piano(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Piano keys; [height, width, 3]."""
    key = max(5.0, width / log_uniform(rng, 8, 52))
    ink = np.zeros((height, width), np.float32)
    start = integer(rng, 0, 6)
    for number in range(int(width / key) + 2):
        x = int(number * key)
        cv2.line(ink, (x, 0), (x, height), 0.8, 1)
        if (number + start) % 7 not in (0, 3):
            reach = int(key * 0.3)
            cv2.rectangle(ink, (x - reach, 0), (x + reach, int(height * 0.62)), 1.0, -1)
    dark, light = np.full(3, uniform(rng, 5, 50), "f"), np.full(3, uniform(rng, 180, 250), "f")
    return textured(rng, blend(ink, dark, light), uniform(rng, 1, 6))


def waveform(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Upright bars of changing height, as of sound, charts and music services."""
    ink = np.zeros((height, width), np.float32)
    count = integer(rng, 2, 5) if chance(rng, 0.5) else 1
    high = height // count
    for number in range(count):
        step = max(4.0, width / log_uniform(rng, 16, 90))
        thick, middle = max(2, int(step * uniform(rng, 0.35, 0.75))), number * high + high // 2
        for x in np.arange(step, width - step / 2, step):
            reach = int(high * uniform(rng, 0.06, 0.44))
            base = middle + (high // 2 - 4 if count % 2 == 0 else reach)
            cv2.line(ink, (int(x), base), (int(x), middle - reach), 1.0, thick, cv2.LINE_AA)
    return _printed(rng, np.clip(ink, 0, 1))


def round_code(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rings of dashes or dots around an emblem: no code of the five kinds."""
    ink = np.zeros((height, width), np.float32)
    cx, cy, reach = width // 2, height // 2, min(width, height) * uniform(rng, 0.3, 0.48)
    rings = integer(rng, 3, 8)
    for ring in range(rings):
        radius = int(reach * (0.4 + 0.6 * ring / rings))
        thick = max(1, int(reach / rings * uniform(rng, 0.2, 0.4)))
        at = uniform(rng, 0, 40)
        while at < 360:  # noqa: PLR2004
            span = uniform(rng, 4, 60)
            cv2.ellipse(ink, (cx, cy), (radius, radius), 0, at, at + span, 1.0, thick, cv2.LINE_AA)
            at += span + uniform(rng, 6, 40)
    cv2.circle(ink, (cx, cy), max(2, int(reach * 0.25)), 1.0, -1, cv2.LINE_AA)
    return _printed(rng, ink)


def emblems(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Icons in frames, buttons and logos with a word each; [height, width, 3]."""
    ink = np.zeros((height, width), np.float32)
    step = max(16, int(max(width, height) / log_uniform(rng, 2, 9)))
    for y in range(step // 8, height, step):
        for x in range(step // 8, width, step):
            side = int(step * uniform(rng, 0.5, 0.75))
            box = ((x, y), (x + side, y + side))
            cv2.rectangle(ink, *box, uniform(rng, 0.5, 1), pick(rng, (1, 2, max(2, side // 8), -1)))
            fill = pick(rng, (0.0, 1.0))
            centre, reach = (x + side // 2, y + side // 2), max(2, side // pick(rng, (3, 4, 5)))
            if chance(rng, 0.5):
                cv2.circle(ink, centre, reach, fill, pick(rng, (-1, 2)))
            else:
                low = (centre[0] - reach, centre[1] - reach)
                cv2.rectangle(ink, low, (centre[0] + reach, centre[1] + reach), fill, -1)
            if chance(rng, 0.5):
                write(ink, word(rng), (x, y + side + 2), font(rng, max(6, step // 7)))
    return _printed(rng, ink)


PRINTS = (
    (text_page, 2.4), (newspaper, 1.6), (puzzle, 1.2), (checkers, 1.0), (pixel_art, 0.8),
    (dot_display, 0.7), (ruler, 0.7), (piano, 0.4), (waveform, 0.7), (round_code, 0.6),
    (emblems, 0.9),
)  # fmt: skip
