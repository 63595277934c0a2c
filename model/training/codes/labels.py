"""Flat printed labels: a symbol with its quiet zone, captions, lines and paper."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model.training.codes.common import (
    Bytes,
    Float,
    chance,
    integer,
    pick,
    smooth_noise,
    to_bytes,
    uniform,
)
from model.training.codes.lettering import draw_line, draw_paragraph, random_line
from model.training.codes.palette import colours, ink_on
from model.training.codes.printing import print_symbol
from model.training.codes.symbols import LINEAR, Symbol


@dataclass(frozen=True)
class Mark:
    """The place of a symbol on a flat sheet.

    Attributes:
        box: left, top, right, bottom of the symbol in sheet pixels (edges, not centres).
        label: Class index.
        payload: Text in the symbol.
        cell: Pixels per module across.
    """

    box: tuple[float, float, float, float]
    label: int
    payload: str
    cell: float


@dataclass(frozen=True)
class Sheet:
    """A flat printed sheet.

    Attributes:
        colour: [H, W, 3] uint8 RGB.
        opacity: [H, W] float32 0..1: 1 where the sheet hides what is under it.
        marks: Symbols on it.
    """

    colour: Bytes
    opacity: Float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Layout:
    """The layout of a label.

    Attributes:
        quiet: Clear cells around the symbol: left, top, right, bottom.
        extras: Whether text lines, frames and captions may be added.
        crisp: Keep ideal print without wear, black on white mostly.
        palette: Paper and ink colour, each [3] RGB 0..255; None draws them.
        under: Brightness 0..255 of the surface if the ink is printed on it directly; None for a
            sheet of paper.
    """

    quiet: tuple[float, float, float, float]
    extras: bool
    crisp: bool
    palette: tuple[Float, Float] | None = None
    under: float | None = None


def _caption_height(rng: np.random.Generator, symbol_shape: tuple[int, int]) -> int:
    high, wide = symbol_shape
    return max(6, int(min(wide * uniform(rng, 0.06, 0.16), max(high, wide * 0.3) * 0.45)))


def _paddings(
    rng: np.random.Generator, symbol: Symbol, shape: tuple[int, int], extras: bool
) -> tuple[int, int, int, int, int]:
    """Draws the space for header, caption, footer and both sides, in pixels (0 for none)."""
    header = caption = footer = left = right = 0
    if extras:
        odds = 0.75 if symbol.label == LINEAR else 0.15
        if chance(rng, odds):
            caption = _caption_height(rng, shape)
        if chance(rng, 0.3):
            header = int(max(shape) * uniform(rng, 0.08, 0.5))
        if chance(rng, 0.25):
            footer = int(max(shape) * uniform(rng, 0.08, 0.5))
        if chance(rng, 0.15):
            left = int(max(shape) * uniform(rng, 0.15, 0.9))
        if chance(rng, 0.15):
            right = int(max(shape) * uniform(rng, 0.15, 0.9))
    return header, caption, footer, left, right


def add_words(rng: np.random.Generator, ink: Float, box: tuple[int, int, int, int]) -> None:
    """Fills a box (left, top, right, bottom) of ink with a big line or a paragraph."""
    left, top, right, bottom = box
    tall = bottom - top
    if right - left < 8 or tall < 6:  # noqa: PLR2004
        return
    if chance(rng, 0.35):
        draw_line(rng, ink, random_line(rng, integer(rng, 3, 14)), box)
    else:
        draw_paragraph(rng, ink, box, max(6, int(tall / integer(rng, 1, 6) * 0.8)))


def _frame(rng: np.random.Generator, ink: Float, area: tuple[int, int, int, int]) -> None:
    """Draws a frame along the sheet's border, or around one area of it."""
    high, wide = ink.shape
    thick = max(1, int(min(high, wide) * uniform(rng, 0.005, 0.03)))
    left, top, right, bottom = area
    if chance(rng, 0.5):
        left, top, right, bottom = thick, thick, wide - thick - 1, high - thick - 1
    cv2.rectangle(ink, (left, top), (right, bottom), uniform(rng, 0.6, 1), thick)


def paint(
    rng: np.random.Generator, ink: Float, layout: Layout, clear: int = 0
) -> tuple[Bytes, Float]:
    """Colours an ink map.

    Args:
        rng: Source of randomness.
        ink: [H, W] float32 coverage 0..1.
        layout: Colours and style.
        clear: Pixels along the rim that carry no code, which corners may be rounded within.

    Returns:
        [H, W, 3] uint8 RGB and [H, W] float32 opacity.
    """
    high, wide = ink.shape
    if layout.under is not None:
        flat = np.broadcast_to(ink_on(rng, layout.under), (high, wide, 3))
        return to_bytes(flat.astype(np.float32)), ink * uniform(rng, 0.75, 1)
    paper, pigment = layout.palette or colours(rng, layout.crisp)
    colour = paper + (pigment - paper) * ink[..., None]
    if not layout.crisp and layout.palette is None and chance(rng, 0.3):
        grain = smooth_noise(rng, wide, high, uniform(rng, 3, max(wide, high) / 2))
        colour = colour + grain[..., None] * uniform(rng, 2, 12)
    opacity = np.ones((high, wide), np.float32)
    if not layout.crisp and layout.palette is None and chance(rng, 0.35):
        radius = min(int(min(high, wide) * uniform(rng, 0.03, 0.2)), clear * 2)
        opacity = _rounded_sheet(high, wide, radius)
    return to_bytes(colour.astype(np.float32)), opacity


def _rounded_sheet(high: int, wide: int, radius: int) -> Float:
    shape = np.zeros((high, wide), np.float32)
    cv2.rectangle(shape, (radius, 0), (wide - radius - 1, high - 1), 1.0, -1)
    cv2.rectangle(shape, (0, radius), (wide - 1, high - radius - 1), 1.0, -1)
    for x in (radius, wide - radius - 1):
        for y in (radius, high - radius - 1):
            cv2.circle(shape, (x, y), radius, 1.0, -1)
    return shape


def _guarded_digits(
    rng: np.random.Generator, symbol: Symbol, ink: Float, box: tuple[int, int, int, int], tall: int
) -> None:
    """Sets an EAN or UPC number between and next to the long guard bars of a printed symbol."""
    left, _, right, bottom = box
    cell = (right - left) / symbol.bits.shape[1]
    top = bottom - round(symbol.guard * cell) + 1
    digits, half = symbol.caption, symbol.bits.shape[1] // 2
    first = digits[: len(digits) % 2 or (1 if symbol.kind == "UPCA" else 0)]
    rest = digits[len(first) :]
    spans = [(3, half - 1), (half + 3, symbol.bits.shape[1] - 3)]
    if symbol.kind == "UPCE":
        spans, rest = [(3, symbol.bits.shape[1] - 6)], digits
    size = -(-len(rest) // len(spans))
    for i, (start, end) in enumerate(spans):
        part = rest[i * size : (i + 1) * size]
        area = (left + int(start * cell), top, left + int(end * cell), top + tall)
        draw_line(rng, ink, part, area)
    if first:
        draw_line(rng, ink, first, (left - int(9 * cell), top, left - int(2 * cell), top + tall))


def _add_caption(
    rng: np.random.Generator, symbol: Symbol, ink: Float, box: tuple[int, int, int, int], tall: int
) -> None:
    """Writes the readable text below a printed symbol at `box`, `tall` pixels high."""
    left, _, right, bottom = box
    if symbol.guard and chance(rng, 0.9):
        _guarded_digits(rng, symbol, ink, box, tall)
        return
    text = symbol.caption or random_line(rng, 12)
    gap = integer(rng, 0, max(1, tall // 5))
    draw_line(rng, ink, text[:40], (left, bottom + gap, right, bottom + tall))


def _set_addon(
    rng: np.random.Generator, ink: Float, addon: Float, digits: str, place: tuple[int, int, int]
) -> None:
    """Sets printed bars, and their digits above them, at (left, top of the space, bottom)."""
    left, space, bottom = place
    tall, wide = addon.shape
    top = max(space, bottom - tall)
    ink[top:bottom, left : left + wide] = addon[: bottom - top]
    if top - space > 5:  # noqa: PLR2004
        draw_line(rng, ink, digits, (left, space, left + wide, top - 1))


def make_label(rng: np.random.Generator, symbol: Symbol, cell: float, layout: Layout) -> Sheet:
    """Sets and prints a label with one symbol.

    Args:
        rng: Source of randomness.
        symbol: What to print.
        cell: Pixels per module across.
        layout: Margins and style.

    Returns:
        The sheet, with one mark.
    """
    body = print_symbol(rng, symbol, cell, layout.crisp)
    high, wide = body.shape
    quiet = [round(q * cell) for q in layout.quiet]
    gap, addon = 0, None
    if symbol.addon is not None:
        addon = print_symbol(rng, symbol.addon, cell, layout.crisp)
        gap = round(uniform(rng, 7, 12) * cell)
        quiet[2] += gap + addon.shape[1]
    header, caption, footer, left, right = _paddings(rng, symbol, (high, wide), layout.extras)
    x, y = left + quiet[0], header + quiet[1]
    below = max(quiet[3], caption + 2 if caption else 0)
    ink = np.zeros((y + high + below + footer, x + wide + quiet[2] + right), np.float32)
    ink[y : y + high, x : x + wide] = body
    box = (x, y, x + wide, y + high)
    if symbol.addon is not None and addon is not None:
        bottom = y + high - round(symbol.guard * cell)
        _set_addon(rng, ink, addon, symbol.addon.caption, (x + wide + gap, y, bottom))
    if caption:
        _add_caption(rng, symbol, ink, box, caption)
    zone = (x - quiet[0] + 1, y - quiet[1] + 1, x + wide + quiet[2] - 1, y + high + below - 1)
    words = _words_areas(ink.shape, (left, right), zone)
    for area, used in zip(words, (header, footer, left, right), strict=True):
        if used:
            add_words(rng, ink, area)
    if layout.extras and min(quiet) >= 2 and chance(rng, 0.15):  # noqa: PLR2004
        _frame(rng, ink, zone)
    colour, opacity = paint(rng, ink, layout, min(quiet))
    mark = Mark(box, symbol.label, symbol.payload, wide / symbol.bits.shape[1])
    return Sheet(colour, opacity, (mark,))


def _words_areas(
    shape: tuple[int, ...], sides: tuple[int, int], zone: tuple[int, int, int, int]
) -> tuple[tuple[int, int, int, int], ...]:
    """Returns the areas for words: above, below, left and right of the symbol's zone."""
    high, wide = shape[:2]
    return (
        (2, 2, wide - 2, zone[1] - 1),
        (2, zone[3] + 1, wide - 2, high - 2),
        (2, zone[1], sides[0] - 2, zone[3]),
        (wide - sides[1] + 2, zone[1], wide - 2, zone[3]),
    )


def make_blank_label(rng: np.random.Generator, wide: int, high: int) -> Sheet:
    """Makes a label without any code: words, frame, paper only; [high, wide]."""
    ink = np.zeros((high, wide), np.float32)
    for _ in range(integer(rng, 1, 3)):
        top = integer(rng, 0, max(1, high // 2))
        add_words(rng, ink, (3, top, wide - 3, min(high - 2, top + integer(rng, 8, max(9, high)))))
    if chance(rng, 0.4):
        _frame(rng, ink, (2, 2, wide - 3, high - 3))
    layout = Layout((0, 0, 0, 0), True, chance(rng, 0.3))
    colour, opacity = paint(rng, ink, layout, 3)
    return Sheet(colour, opacity, ())


def quiet_zone(rng: np.random.Generator, tight: float) -> tuple[float, float, float, float]:
    """Draws clear margins in cells: left, top, right, bottom.

    Args:
        rng: Source of randomness.
        tight: Chance of (almost) no margin at all.

    Returns:
        Four margins in cells, at least 0.
    """
    if chance(rng, tight):
        same = pick(rng, (0.0, 0.0, 0.0, 0.5, 1.0))
        return (same, same, same, same)
    if chance(rng, 0.25):
        left, top, right, bottom = (float(v) for v in rng.uniform(0, 8, 4))
        return (left, top, right, bottom)
    same = pick(rng, (1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 10.0))
    return (same, same, same, same)
