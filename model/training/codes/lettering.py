"""Drawn text: captions, lines, paragraphs, prices, tables."""

from __future__ import annotations

import string

import cv2
import numpy as np

from model.training.codes.common import Float, chance, integer, pick, uniform

_STROKE_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
)
_OUTLINE_FONTS = ("sans", "italic")
_FACES: dict[str, cv2.FontFace] = {}


def _face(name: str) -> cv2.FontFace:
    if name not in _FACES:
        _FACES[name] = cv2.FontFace(name)
    return _FACES[name]


def random_line(rng: np.random.Generator, letters: int) -> str:
    """Makes a line of word-like text, capitals, figures or a price, of about `letters`."""
    kind = integer(rng, 0, 4)
    if kind == 0:
        return "".join(pick(rng, string.digits + "  -/.") for _ in range(letters))
    if kind == 1:
        return f"{pick(rng, '$E#')}{integer(rng, 0, 99)}.{integer(rng, 10, 99)}"
    alphabet = string.ascii_uppercase if kind == 2 else string.ascii_lowercase  # noqa: PLR2004
    codes = rng.integers(0, 26, letters)
    gaps = rng.random(letters) < 0.17  # noqa: PLR2004
    text = "".join(" " if g else alphabet[c] for c, g in zip(codes, gaps, strict=True))
    return text.strip() or "abc"


def draw_line(
    rng: np.random.Generator, ink: Float, text: str, box: tuple[int, int, int, int]
) -> None:
    """Draws one line of text so that it fits a box.

    Args:
        rng: Source of randomness; picks the font.
        ink: [H, W] float32 ink coverage 0..1, changed in place.
        text: Printable ASCII.
        box: left, top, right, bottom in pixels; text is cut to it and centred in it.
    """
    left, top, right, bottom = (max(0, v) for v in box)
    wide, tall = min(right, ink.shape[1]) - left, min(bottom, ink.shape[0]) - top
    if wide < 4 or tall < 4:  # noqa: PLR2004
        return
    if chance(rng, 0.5):
        patch = _outline_text(rng, text, wide, tall)
    else:
        patch = _stroke_text(rng, text, wide, tall)
    high, broad = patch.shape
    y, x = top + (tall - high) // 2, left + (wide - broad) // 2
    area = ink[y : y + high, x : x + broad]
    np.maximum(area, patch, out=area)


def _outline_text(rng: np.random.Generator, text: str, wide: int, tall: int) -> Float:
    canvas = np.zeros((tall, wide, 3), np.uint8)
    size = max(4, int(tall * 0.82))
    length = max(1, int(size * 0.56 * len(text)))
    if length > wide:
        size = max(4, int(size * wide / length))
    x = max(0, (wide - int(size * 0.56 * len(text))) // 2)
    name = _OUTLINE_FONTS[0] if chance(rng, 0.8) else _OUTLINE_FONTS[1]
    base = (tall + int(size * 0.7)) // 2
    cv2.putText(
        canvas, text, (x, base), (255, 255, 255), _face(name), size, integer(rng, 3, 8) * 100
    )
    return np.asarray(canvas[..., 0] / 255, np.float32)


def _stroke_text(rng: np.random.Generator, text: str, wide: int, tall: int) -> Float:
    font = pick(rng, _STROKE_FONTS)
    (w1, h1), base1 = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(wide / max(w1, 1), tall / max(h1 + base1, 1)) * 0.95
    canvas = np.zeros((tall, wide), np.uint8)
    thick = max(1, round(scale * uniform(rng, 0.8, 2.6)))
    (width, height), base = cv2.getTextSize(text, font, scale, thick)
    at = ((wide - width) // 2, (tall + height - base // 2) // 2)
    cv2.putText(canvas, text, at, font, scale, (255,), thick, cv2.LINE_AA)
    return np.asarray(canvas / 255, np.float32)


def draw_paragraph(
    rng: np.random.Generator, ink: Float, box: tuple[int, int, int, int], line: int
) -> None:
    """Fills a box with lines of text of one height.

    Args:
        rng: Source of randomness.
        ink: [H, W] float32 ink coverage, changed in place.
        box: left, top, right, bottom in pixels.
        line: Line height in pixels.
    """
    left, top, right, bottom = box
    line = max(4, line)
    strip = np.zeros((line, max(1, right - left)), np.float32)
    strips: list[Float] = []
    for y in range(top, bottom - line + 1, max(5, round(line * uniform(rng, 1.05, 1.5)))):
        if len(strips) < 3 or chance(rng, 0.15):  # noqa: PLR2004
            strip = np.zeros((line, max(1, right - left)), np.float32)
            letters = max(1, int((right - left) / line / 0.52))
            draw_line(rng, strip, random_line(rng, letters), (0, 0, right - left, line))
            strips.append(strip)
        chosen = np.roll(pick(rng, strips), integer(rng, 0, 40), axis=1).copy()
        if chance(rng, 0.2):
            chosen[:, int(chosen.shape[1] * uniform(rng, 0.2, 0.9)) :] = 0
        area = ink[y : y + line, left:right]
        if area.size:
            np.maximum(area, chosen[: area.shape[0], : area.shape[1]], out=area)


def draw_table(rng: np.random.Generator, ink: Float, box: tuple[int, int, int, int]) -> None:
    """Draws a ruled table with short entries in a box (left, top, right, bottom) of ink."""
    left, top, right, bottom = box
    rows, columns = integer(rng, 2, 8), integer(rng, 2, 6)
    ys = np.linspace(top, bottom - 1, rows + 1).astype(int)
    xs = np.linspace(left, right - 1, columns + 1).astype(int)
    thick = integer(rng, 1, 2)
    for y in ys:
        cv2.line(ink, (left, int(y)), (right, int(y)), 1.0, thick)
    for x in xs:
        cv2.line(ink, (int(x), top), (int(x), bottom), 1.0, thick)
    for i in range(rows):
        for j in range(columns):
            if chance(rng, 0.5):
                cell = (int(xs[j]) + 2, int(ys[i]) + 2, int(xs[j + 1]) - 2, int(ys[i + 1]) - 2)
                draw_line(rng, ink, random_line(rng, integer(rng, 2, 8)), cell)
