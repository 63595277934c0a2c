"""Rows of thin outlines: the edges of folders, wire racks, fringes, bristles, strings.

They are as dense and as nearly parallel as the bars of a linear code. But they are joined in pairs
at one end, bend, lean by turns and end at different heights.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model.training.codes.common import (
    Bytes,
    Float,
    chance,
    integer,
    log_uniform,
    smooth_noise,
    to_bytes,
    uniform,
)
from model.training.codes.edition2.ink import colour, textured, two_tones
from model.training.codes.edition2.textures import one_sided_light
from model.training.codes.edition4.plates import seen_by_camera

_SUBPIXEL = 4  # bits of the coordinates that OpenCV draws with
_STEPS = 6  # points of a bent line


@dataclass(frozen=True)
class _Style:
    """What the outlines of a row have in common.

    Attributes:
        shade: of the lines, [3].
        pitch: pixels from one outline to the next.
        opening: share of the pitch between the two lines of an outline; 0: single lines.
        thickness: of a line in pixels.
        uneven: of places, lengths and brightness, 0..1.
        lean: largest slope.
        bend: how far the middle of a line is beside it, as a share of the pitch.
        closed: how far the joined end is moved sideways, as a share of the pitch.
        card: share of the outlines that hold a light card at their open end.
    """

    shade: Float
    pitch: float
    opening: float
    thickness: int
    uneven: float
    lean: float
    bend: float
    closed: float
    card: float


def _style(rng: np.random.Generator, width: int, shade: Float) -> _Style:
    pitch = max(3.0, width / log_uniform(rng, 12, 90))
    return _Style(
        shade=shade,
        pitch=pitch,
        opening=0.0 if chance(rng, 0.3) else uniform(rng, 0.2, 0.7),
        thickness=max(1, int(pitch * uniform(rng, 0.08, 0.4))),
        uneven=uniform(rng, 0.05, 0.6),
        lean=uniform(rng, 0.02, 0.5),
        bend=0.0 if chance(rng, 0.5) else uniform(rng, 0.1, 1.0),
        closed=float(rng.normal(0.4, 0.5)),
        card=0.0 if chance(rng, 0.5) else uniform(rng, 0.3, 1.0),
    )


def _line(
    rng: np.random.Generator, ends: tuple[tuple[float, float], tuple[float, float]], bend: float
) -> Float:
    """Points of a bent line, [n, 2]."""
    (x0, y0), (x1, y1) = ends
    way = np.linspace(0, 1, _STEPS)
    aside = bend * np.sin(np.pi * way) * uniform(rng, 0.5, 1)
    return np.stack([x0 + (x1 - x0) * way + aside, y0 + (y1 - y0) * way], 1).astype(np.float32)


def _draw(image: Bytes, points: Float, shade: Float, thickness: int, filled: bool = False) -> None:
    scaled = np.round(points * (1 << _SUBPIXEL)).astype(np.int32)
    tint = colour(np.clip(shade, 0, 255))
    if filled:
        cv2.fillConvexPoly(image, scaled, tint, cv2.LINE_AA, _SUBPIXEL)
    else:
        cv2.polylines(image, [scaled], False, tint, thickness, cv2.LINE_AA, _SUBPIXEL)


def _row(rng: np.random.Generator, image: Bytes, top: float, high: float, style: _Style) -> None:
    """Paints one row from left to right; neighbours lean alike."""
    width, lean, x = image.shape[1], 0.0, -2 * style.pitch
    side = style.pitch * style.opening
    while x < width + style.pitch:
        lean = float(np.clip(lean + rng.normal(0, 0.2) * style.lean, -style.lean, style.lean))
        start = top + high * 0.3 * style.uneven * uniform(rng, 0, 1)
        foot = top + high * (1 - 0.3 * style.uneven * uniform(rng, 0, 1))
        shade = style.shade * uniform(rng, 1 - 0.6 * style.uneven, 1.1)
        fall = lean * (foot - start)
        bend = style.bend * style.pitch
        line = _line(rng, ((x, start), (x + fall, foot)), bend)
        if side:
            tip = (x + fall + side + style.closed * style.pitch, foot + uniform(rng, 0, side))
            back = _line(rng, (tip, (x + side, start)), bend)
            line = np.concatenate([line, back])
        _draw(image, line, shade, style.thickness)
        if chance(rng, style.card):
            wide, long = style.pitch * uniform(rng, 0.4, 1.0), high * uniform(rng, 0.15, 0.6)
            moved = lean * long
            corners = [(x, start), (x + wide, start), (x + wide + moved, start + long)]
            corners.append((x + moved, start + long))
            light = style.shade * uniform(rng, 0.8, 1.5)
            _draw(image, np.array(corners, np.float32), light, 0, filled=True)
        x += style.pitch * uniform(rng, 1 - 0.7 * style.uneven, 1 + 0.7 * style.uneven)


def outlines(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rows of thin outlines, mostly light on dark; [height, width, 3]."""
    dark, light = two_tones(rng, uniform(rng, 60, 200))
    if chance(rng, 0.25):
        dark, light = light, dark
    ground = np.broadcast_to(dark, (height, width, 3)).astype(np.float32)
    ground = ground + smooth_noise(rng, width, height, uniform(rng, 2, 12))[..., None] * 20
    image = to_bytes(np.asarray(ground, np.float32))
    style, high = _style(rng, width, light), height / uniform(rng, 0.8, 4)
    top = -high * uniform(rng, 0, 0.7)
    while top < height:
        _row(rng, image, top, high * uniform(rng, 0.6, 1), style)
        if chance(rng, 0.5):
            board = colour(np.clip(dark * uniform(rng, 0.6, 1.6), 0, 255))
            thick = max(1, int(high * uniform(rng, 0.02, 0.1)))
            cv2.rectangle(image, (0, int(top) - thick), (width, int(top)), board, -1)
        top += high
    for _ in range(integer(rng, 0, 2)):  # posts in front
        left, wide = uniform(rng, 0, width), max(2, int(width * uniform(rng, 0.01, 0.08)))
        post = colour(np.clip(dark * uniform(rng, 0.6, 1.4), 0, 255))
        cv2.rectangle(image, (int(left), 0), (int(left) + wide, height), post, -1)
    return one_sided_light(rng, textured(rng, image, uniform(rng, 2, 14)))


def outlines_view(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rows of thin outlines as a camera sees them."""
    return seen_by_camera(rng, outlines, width, height)
