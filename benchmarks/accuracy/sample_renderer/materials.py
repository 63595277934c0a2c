"""Surfaces without any print: wood, cardboard, paper, cloth, plain lacquer."""

from __future__ import annotations

import cv2
import numpy as np

from .scene import Colour, Print

_PIXELS_PER_CM = 40


def _field(rng: np.random.Generator, wide: int, high: int, columns: float, rows: float) -> Colour:
    """Smooth noise [high, wide] with mean 0; `columns` and `rows`: about so many maxima."""
    shape = (max(2, int(rows)), max(2, int(columns)))
    small = rng.normal(0, 1, shape).astype(np.float32)
    return np.asarray(cv2.resize(small, (wide, high), interpolation=cv2.INTER_CUBIC), np.float32)


def _canvas(size: tuple[float, float], scale: float = _PIXELS_PER_CM) -> tuple[int, int]:
    return max(2, round(size[0] * scale)), max(2, round(size[1] * scale))


def wood(
    rng: np.random.Generator,
    size: tuple[float, float],
    tone: tuple[float, float, float] = (176, 132, 92),
    plank: float = 11.0,
) -> Print:
    """A table of horizontal planks."""
    wide, high = _canvas(size, 24)
    out = np.empty((high, wide, 3), np.float32)
    step = round(plank * 24)
    for top in range(0, high, step):
        tall = min(step, high - top)
        rows = np.arange(tall, dtype=np.float32)[:, None] / step
        bend = _field(rng, wide, tall, 5, 3) * 0.35
        rings = np.sin((rows * rng.uniform(5, 9) + bend * 2.2) * 2 * np.pi)
        grain = _field(rng, wide, tall, wide / 60, tall) * 0.5
        pores = np.minimum(_field(rng, wide, tall, wide / 14, tall), 0) * 0.35
        level = 1 + rng.normal(0, 0.045)
        shade = level * (1 + 0.045 * rings + 0.035 * grain + 0.05 * pores)
        out[top : top + tall] = np.array(tone, np.float32) * shade[..., None]
        out[top : top + 3] *= 0.62
    return Print(out, size)


def cardboard(rng: np.random.Generator, size: tuple[float, float]) -> Print:
    """The brown outside of corrugated board."""
    wide, high = _canvas(size, 24)
    flutes = _field(rng, wide, high, wide / 9, 6) * 0.012
    fibre = _field(rng, wide, high, wide / 5, high / 2) * 0.018
    cloud = _field(rng, wide, high, 6, 5) * 0.02
    shade = 1 + flutes + fibre + cloud
    return Print(np.asarray(np.array((186, 145, 103)) * shade[..., None], np.float32), size)


def plain(
    rng: np.random.Generator, size: tuple[float, float], tone: tuple[float, float, float]
) -> Print:
    """Lacquered card or metal of one colour."""
    wide, high = _canvas(size, 12)
    shade = 1 + _field(rng, wide, high, 4, 4) * 0.012
    return Print(np.asarray(np.array(tone) * shade[..., None], np.float32), size)


def checked_cloth(rng: np.random.Generator, size: tuple[float, float]) -> Print:
    """A kitchen towel: woven checks of red on white."""
    wide, high = _canvas(size)
    ys, xs = np.mgrid[0:high, 0:wide].astype(np.float32) / _PIXELS_PER_CM
    warp = (xs % 2.4) < 1.2  # noqa: PLR2004 - centimetres of a stripe
    weft = (ys % 2.4) < 1.2  # noqa: PLR2004
    share = (warp.astype(np.float32) + weft) / 2
    red, white = np.array((178, 52, 48)), np.array((238, 233, 224))
    colour = white + (red - white) * share[..., None]
    thread = np.sin(xs * 2 * np.pi * 9) * np.sin(ys * 2 * np.pi * 9)
    folds = _field(rng, wide, high, 4, 3)
    shade = 1 + 0.035 * thread + 0.05 * folds
    return Print(np.asarray(colour * shade[..., None], np.float32), size)
