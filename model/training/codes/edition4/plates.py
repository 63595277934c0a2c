"""Rows of thin things with gaps: hanging files, records in a crate, cards, organ pipes, cutlery.

Their edges are nearly parallel, as the bars of a linear code are, but lean by turns, end at
different heights and have lettering on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from model.training.codes.common import (
    Bytes,
    Float,
    chance,
    integer,
    log_uniform,
    pick,
    smooth_noise,
    to_bytes,
    uniform,
)
from model.training.codes.edition2.ink import (
    colour,
    font,
    textured,
    tilted,
    tone,
    two_tones,
    word,
    write,
)
from model.training.codes.edition2.textures import one_sided_light

_OVERSIZE = 1.35  # of a view at an angle
_LETTERED = 7  # pixels: narrower things have no lettering
_SUBPIXEL = 4  # bits of the coordinates that OpenCV draws with


@dataclass(frozen=True)
class _Style:
    """What the things of a row have in common.

    Attributes:
        shades: of their faces, each [3].
        pitch: pixels from one to the next.
        share: of the pitch that a thing takes.
        height: share of the row.
        uneven: of height and position, 0..1.
        lean: largest slope.
        lettered: share that has lettering.
        folders: whether they hang in folders, whose edges are seen below them.
    """

    shades: tuple[Float, ...]
    pitch: float
    share: float
    height: float
    uneven: float
    lean: float
    lettered: float
    folders: bool


def _style(rng: np.random.Generator, width: int, light: Float) -> _Style:
    shades = tuple(light * uniform(rng, 0.7, 1.1) for _ in range(integer(rng, 1, 4)))
    if chance(rng, 0.3):
        shades += (tone(rng),)
    return _Style(
        shades=shades,
        pitch=max(3.0, width / log_uniform(rng, 8, 70)),
        share=uniform(rng, 0.3, 0.9),
        height=uniform(rng, 0.4, 0.95),
        uneven=uniform(rng, 0.05, 0.6),
        lean=uniform(rng, 0.0, 0.5),
        lettered=0.0 if chance(rng, 0.4) else uniform(rng, 0.3, 1.0),
        folders=chance(rng, 0.35),
    )


def _polygon(image: Bytes, corners: list[tuple[float, float]], shade: Float) -> None:
    points = np.round(np.array(corners) * (1 << _SUBPIXEL)).astype(np.int32)
    cv2.fillConvexPoly(image, points, colour(np.clip(shade, 0, 255)), cv2.LINE_AA, _SUBPIXEL)


def _letter(
    rng: np.random.Generator, image: Bytes, corners: list[tuple[float, float]], shade: Float
) -> None:
    """Writes along a thing, from one end to the other."""
    (x0, y0), (x1, _), (x2, y2), (x3, _) = corners
    wide, high = int(x1 - x0), int(y2 - y0)
    if wide < _LETTERED or high < 3 * wide:
        return
    ink = np.zeros((wide, high), np.float32)
    text = " ".join(word(rng) for _ in range(integer(rng, 1, 4)))
    face = font(rng, max(5, int(wide * uniform(rng, 0.5, 0.8))))
    write(ink, text, (high * uniform(rng, 0.03, 0.4), wide * 0.15), face)
    turned = np.rot90(ink, pick(rng, (1, 3)))
    slope = (x3 - x0 + x2 - x1) / (2 * max(high, 1))
    matrix = np.array([[1, slope, x0], [0, 1, y0]], np.float32)
    area = cv2.warpAffine(np.ascontiguousarray(turned), matrix, image.shape[1::-1])[..., None]
    letters = np.where(shade.mean() < 120, shade + 120, shade * 0.2)  # noqa: PLR2004
    image[...] = to_bytes(np.asarray(image + (letters - image) * area, np.float32))


def _row(rng: np.random.Generator, image: Bytes, top: float, high: float, style: _Style) -> None:
    """Paints one row, from left to right; neighbours lean alike."""
    width, lean, x = image.shape[1], 0.0, -style.pitch
    wide = style.pitch * style.share
    while x < width + style.pitch:
        lean = float(np.clip(lean + rng.normal(0, 0.25) * style.lean, -style.lean, style.lean))
        start = top + high * (1 - style.height) * uniform(rng, 1 - style.uneven, 1)
        long = high * style.height * uniform(rng, 1 - style.uneven * 0.5, 1)
        foot = x + lean * long
        shade = pick(rng, style.shades) * uniform(rng, 0.8, 1.1)
        corners = [(x, start), (x + wide, start), (foot + wide, start + long), (foot, start + long)]
        if style.folders:
            _folder(rng, image, (foot + wide / 2, start + long), high, shade)
        _polygon(image, corners, shade)
        if chance(rng, style.lettered):
            _letter(rng, image, corners, shade)
        x += style.pitch * uniform(rng, 1 - style.uneven * 0.6, 1 + style.uneven * 0.6)


def _folder(
    rng: np.random.Generator, image: Bytes, at: tuple[float, float], high: float, shade: Float
) -> None:
    """Paints the edge of a folder below a label, with a bend."""
    x, y = at
    reach = high * uniform(rng, 0.15, 0.45)
    slope = float(rng.normal(0.15, 0.1))
    bend = (x + slope * reach, y + reach)
    end = (bend[0] + uniform(rng, -0.12, 0.12) * high, bend[1] + uniform(rng, -0.03, 0.06) * high)
    points = np.array([(x, y), bend, end]) * (1 << _SUBPIXEL)
    edge = colour(np.clip(shade * uniform(rng, 0.4, 0.8), 0, 255))
    cv2.polylines(
        image,
        [np.round(points).astype(np.int32)],
        False,
        edge,
        max(1, int(high / 150)),
        cv2.LINE_AA,
        _SUBPIXEL,
    )


def plates(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rows of thin things in front of a dark or light ground; [height, width, 3]."""
    dark, light = two_tones(rng, uniform(rng, 60, 190))
    if chance(rng, 0.2):
        dark, light = light, dark
    ground = np.broadcast_to(dark, (height, width, 3)).astype(np.float32)
    ground = ground + smooth_noise(rng, width, height, uniform(rng, 2, 12))[..., None] * 25
    image = to_bytes(np.asarray(ground, np.float32))
    style, high = _style(rng, width, light), height / integer(rng, 1, 3)
    top = -high * uniform(rng, 0, 0.5)
    while top < height:
        _row(rng, image, top, high, style)
        if chance(rng, 0.6):
            edge = int(top + high)
            board = colour(np.clip(dark * uniform(rng, 0.7, 1.6), 0, 255))
            thick = max(1, int(high * uniform(rng, 0.01, 0.08)))
            cv2.rectangle(image, (0, edge - thick), (width, edge), board, -1)
        top += high
    return one_sided_light(rng, textured(rng, image, uniform(rng, 2, 14)))


def plates_view(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rows of thin things as a camera sees them."""
    return seen_by_camera(rng, plates, width, height)


def seen_by_camera(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator, int, int], Bytes],
    width: int,
    height: int,
) -> Bytes:
    """A drawing as a camera sees it, also upside down or sideways, often at an angle.

    Args:
        rng: Source of randomness.
        draw: Draws [height, width, 3], given width and height.
        width: Of the view, in pixels.
        height: Of the view, in pixels.
    """
    wide, high = int(width * _OVERSIZE), int(height * _OVERSIZE)
    turns = 0 if chance(rng, 0.6) else integer(rng, 1, 3)
    size = (high, wide) if turns % 2 else (wide, high)
    image = np.ascontiguousarray(np.rot90(draw(rng, *size), turns))
    if chance(rng, 0.4):
        top, left = (high - height) // 2, (wide - width) // 2
        return np.ascontiguousarray(image[top : top + height, left : left + width])
    return tilted(rng, image, width, height)
