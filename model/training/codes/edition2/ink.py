"""Shared parts of the patterns: pixel grids, colours, distortion, real typefaces.

Text is set in the fonts that matplotlib contains: DejaVu (Bitstream Vera licence) and STIX (SIL
Open Font License).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

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

Indices: TypeAlias = npt.NDArray[np.int64]
_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FONT_FILES = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf", "STIXGeneral.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
)  # fmt: skip
_STARTS = ("b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w")
_VOWELS = ("a", "e", "e", "i", "o", "u", "ea", "ou")
_ENDS = ("", "", "n", "r", "s", "t", "l", "d", "nd", "ng", "ck", "rt")
_MIN_CONTRAST = 40.0  # grey levels


def grids(width: int, height: int) -> tuple[Float, Float]:
    """Pixel coordinates x and y, each [height, width]."""
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    return xs, ys


def wavy(rng: np.random.Generator, width: int, height: int, reach: float) -> tuple[Float, Float]:
    """Pixel coordinates that wander by up to `reach` pixels, as cloth and paper do."""
    xs, ys = grids(width, height)
    if reach > 0:
        cells = uniform(rng, 1, 5)
        xs = xs + smooth_noise(rng, width, height, cells) * reach
        ys = ys + smooth_noise(rng, width, height, cells) * reach
    return xs, ys


def tone(rng: np.random.Generator) -> Float:
    """Draws a colour, [3]; greys and muted colours are common."""
    spread = pick(rng, (0.0, 0.0, 12.0, 30.0, 70.0))
    level = uniform(rng, 15, 240) + rng.uniform(-spread, spread, 3)
    return np.asarray(np.clip(level, 0, 255), np.float32)


def colour(values: Float) -> tuple[float, float, float]:
    """A colour, [3], as OpenCV takes it."""
    return (float(values[0]), float(values[1]), float(values[2]))


def two_tones(rng: np.random.Generator, contrast: float = _MIN_CONTRAST) -> tuple[Float, Float]:
    """Draws a dark and a light colour, each [3], at least `contrast` apart on average."""
    dark, light = tone(rng), tone(rng)
    if dark.mean() > light.mean():
        dark, light = light, dark
    lacking = contrast - float(light.mean() - dark.mean())
    if lacking > 0:
        dark, light = dark - lacking * 0.6, light + lacking * 0.6
    return np.clip(dark, 0, 255), np.clip(light, 0, 255)


def blend(ink: Float, dark: Float, light: Float) -> Bytes:
    """Colours [h, w] coverage: 0 becomes `light`, 1 becomes `dark`."""
    return to_bytes(np.asarray(light + (dark - light) * ink[..., None], np.float32))


def textured(rng: np.random.Generator, image: Bytes, strength: float) -> Bytes:
    """Adds stains and grain of up to `strength` grey levels."""
    height, width = image.shape[:2]
    soft = smooth_noise(rng, width, height, uniform(rng, 2, 9)) * strength
    grain = rng.standard_normal((height, width), np.float32) * (strength * 0.35)
    return to_bytes(np.asarray(image + (soft + grain)[..., None], np.float32))


def chosen(rng: np.random.Generator, palette: Float, cells: Indices) -> Float:
    """Gives every cell number of [h, w] a random colour of [n, 3]; returns [h, w, 3]."""
    table = palette[rng.integers(0, len(palette), int(cells.max()) + 1)]
    return np.asarray(table[cells], np.float32)


def palette(rng: np.random.Generator, count: int, spread: float) -> Float:
    """Draws `count` colours around one, each channel within `spread`; [count, 3]."""
    colours = tone(rng) + rng.uniform(-spread, spread, (count, 1)) + rng.uniform(-8, 8, (count, 3))
    return np.asarray(np.clip(colours, 0, 255), np.float32)


@functools.cache
def _font_files() -> tuple[Path, ...]:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return tuple(folder / name for name in _FONT_FILES if (folder / name).exists())


@functools.lru_cache(maxsize=256)
def _font(number: int, size: int) -> _Font:
    files = _font_files()
    if not files:
        return ImageFont.load_default(size)
    return ImageFont.truetype(
        files[number % len(files)], size, layout_engine=ImageFont.Layout.BASIC
    )


def font(rng: np.random.Generator, size: int) -> _Font:
    """Draws a typeface of about `size` pixels; sizes are rounded, so that fonts are reused."""
    step = 1 if size < 16 else 2 if size < 40 else 6  # noqa: PLR2004
    return _font(integer(rng, 0, len(_FONT_FILES) - 1), max(5, size // step * step))


def word(rng: np.random.Generator) -> str:
    """A random pronounceable word or a number."""
    if chance(rng, 0.12):
        return str(integer(rng, 0, 9999))
    parts = [pick(rng, _STARTS) + pick(rng, _VOWELS) for _ in range(integer(rng, 1, 3))]
    text = "".join(parts) + pick(rng, _ENDS)
    return text.capitalize() if chance(rng, 0.15) else text


def sentence(rng: np.random.Generator, words: int) -> str:
    """Random words."""
    return " ".join(word(rng) for _ in range(words))


def write(ink: Float, text: str, at: tuple[float, float], face: _Font) -> None:
    """Adds a line of text to [h, w] coverage; `at` is its left upper corner."""
    left, top, right, bottom = (int(v) for v in face.getbbox(text))
    wide, high = max(1, right - left), max(1, bottom - top)
    page = Image.new("L", (wide, high))
    ImageDraw.Draw(page).text((-left, -top), text, fill=255, font=face)
    x, y = int(at[0]), int(at[1])
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + wide, ink.shape[1]), min(y + high, ink.shape[0])
    if x1 > x0 and y1 > y0:
        part = np.asarray(page, np.float32)[y0 - y : y1 - y, x0 - x : x1 - x] / 255
        ink[y0:y1, x0:x1] = np.maximum(ink[y0:y1, x0:x1], part)


def tilted(rng: np.random.Generator, image: Bytes, width: int, height: int) -> Bytes:
    """Sees an image at an angle: rotated and in perspective, filling [height, width, 3]."""
    high, wide = image.shape[:2]
    angle = float(rng.normal(0, 0.12)) if chance(rng, 0.7) else uniform(rng, 0, 2 * np.pi)
    shrink = uniform(rng, 0.62, 0.95)
    if abs(np.sin(angle)) > 0.25:  # noqa: PLR2004
        shrink *= 0.7
    reach = np.array([wide, high]) * shrink / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * reach
    corners *= 1 - rng.uniform(0, 0.45, (4, 1)) * float(chance(rng, 0.75))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    source = (corners @ turn.T + np.array([wide, high]) / 2).astype(np.float32)
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(source, target)
    flags = cv2.INTER_LINEAR
    out = cv2.warpPerspective(
        image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(out, np.uint8)
