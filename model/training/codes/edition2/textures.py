"""Repeating materials without codes: fabric, carpet, metal, tiles, stone."""

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
    to_bytes,
    uniform,
)
from model.training.codes.edition2.ink import (
    Indices,
    blend,
    chosen,
    grids,
    palette,
    textured,
    two_tones,
    wavy,
)

_TWO_PI = 2 * np.pi


def _pitch(rng: np.random.Generator, width: int, height: int, fine: float, coarse: float) -> float:
    """Draws the size of a repeat in pixels, from `coarse` to `fine` repeats a longest side."""
    return max(2.6, max(width, height) / log_uniform(rng, coarse, fine))


def knit(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Knitted rows of V-shaped stitches; [height, width, 3]."""
    pitch = _pitch(rng, width, height, 110, 16)
    xs, ys = wavy(rng, width, height, pitch * uniform(rng, 0.2, 2))
    u, v = xs / pitch, ys / (pitch * uniform(rng, 0.6, 1.1))
    leg = np.abs(u % 1 - 0.5)
    shade = 0.5 + 0.5 * np.cos((v + leg * uniform(rng, 0.8, 1.6)) * _TWO_PI)
    seam = 0.6 + 0.4 * np.sin(np.pi * np.clip(leg * 2, 0, 1))
    dark, light = two_tones(rng, uniform(rng, 25, 90))
    image = blend(np.asarray(1 - shade * seam, np.float32), dark, light)
    if chance(rng, 0.4):  # bands of another colour
        other, _ = two_tones(rng)
        band = (np.floor(v / integer(rng, 2, 9)) % integer(rng, 2, 4) == 0)[..., None]
        image = to_bytes(np.where(band, image * 0.4 + other * 0.6 * shade[..., None], image))
    return textured(rng, image, uniform(rng, 4, 16))


def woven(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Plain weave, twill or herringbone; [height, width, 3]."""
    pitch = _pitch(rng, width, height, 190, 40)
    xs, ys = wavy(rng, width, height, pitch * uniform(rng, 0, 2))
    u, v = xs / pitch, ys / pitch
    i, j = np.floor(u), np.floor(v)
    kind = pick(rng, ("plain", "twill", "herringbone"))
    if kind == "plain":
        over = (i + j) % 2 < 1
    else:
        wide = float(integer(rng, 4, 14)) if kind == "herringbone" else 1e9
        sign = np.where(np.floor(i / wide) % 2 == 0, 1.0, -1.0)
        repeat = integer(rng, 3, 6)
        over = (i + sign * j) % repeat < repeat / 2
    thread = np.where(over, np.sin(np.pi * (u % 1)), np.sin(np.pi * (v % 1)))
    dark, light = two_tones(rng, uniform(rng, 15, 90))
    ink = np.asarray(over * uniform(rng, 0.6, 1.0), np.float32)
    image = blend(ink, dark, light) * (0.55 + 0.45 * thread)[..., None]
    return textured(rng, to_bytes(np.asarray(image, np.float32)), uniform(rng, 3, 14))


def plaid(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Checked cloth; [height, width, 3]."""
    xs, ys = wavy(rng, width, height, uniform(rng, 0, 6))
    period = _pitch(rng, width, height, 14, 3)
    edges = np.sort(rng.uniform(0, 1, integer(rng, 2, 6)))
    shades = palette(rng, len(edges) + 1, uniform(rng, 30, 110))
    across = shades[np.searchsorted(edges, (xs / period) % 1)]
    down = shades[np.searchsorted(edges, (ys / period) % 1)]
    twill = ((xs + ys) % 3 < 1.5)[..., None]  # noqa: PLR2004
    mixed = np.where(twill, across * 0.65 + down * 0.35, across * 0.35 + down * 0.65)
    return textured(rng, to_bytes(np.asarray(mixed, np.float32)), uniform(rng, 3, 10))


def carpet(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Ribbed carpet whose tiles run in changing directions; [height, width, 3]."""
    pitch = _pitch(rng, width, height, 120, 24)
    xs, ys = wavy(rng, width, height, pitch * uniform(rng, 0.3, 1.5))
    loops = max(4, int(max(width, height) / (pitch * uniform(rng, 0.5, 2))))
    rough = rng.uniform(0, 1, (loops, loops)).astype(np.float32)
    knots = np.asarray(resize(rough, width, height), np.float32)
    ribs_x = 0.5 + 0.5 * np.cos(xs / pitch * _TWO_PI)
    ribs_y = 0.5 + 0.5 * np.cos(ys / pitch * _TWO_PI)
    ribs = ribs_x
    if chance(rng, 0.6):
        side = max(width, height) * log_uniform(rng, 0.15, 0.8)
        shift = uniform(rng, 0, side)
        turned = (np.floor((xs + shift) / side) + np.floor((ys + shift) / side)) % 2 < 1
        ribs = np.where(turned, ribs_x, ribs_y)
    ink = 1 - ribs * (0.35 + 0.65 * knots)
    if chance(rng, 0.5):  # coarse yarn of several shades
        ink = ink * (0.6 + 0.4 * (rng.random((height, width)) > uniform(rng, 0.2, 0.7)))
    dark, light = two_tones(rng, uniform(rng, 30, 110))
    return textured(rng, blend(np.asarray(ink, np.float32), dark, light), uniform(rng, 6, 26))


def stone(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Veined, speckled or crackled stone and paint; [height, width, 3]."""
    cells, ink = uniform(rng, 8, 60), np.zeros((height, width), np.float32)
    field = np.zeros((height, width), np.float32)
    for octave in range(4):
        many = min(cells * 2**octave, max(width, height) / 2)
        field += smooth_noise(rng, width, height, many) * 0.6**octave
    kind = pick(rng, ("veins", "blots", "specks"))
    if kind == "veins":
        ink = np.clip((np.abs(field) - uniform(rng, 0.04, 0.15)) * 9 + 0.5, 0, 1)
    elif kind == "blots":
        ink = np.clip((field - uniform(rng, -0.2, 0.3)) * uniform(rng, 3, 14) + 0.5, 0, 1)
    else:
        fine = rng.random((height // 2 + 1, width // 2 + 1)).astype(np.float32)
        specks = np.asarray(resize(fine, width, height), np.float32)
        ink = np.clip((specks + field * 0.2 - uniform(rng, 0.4, 0.75)) * 6, 0, 1)
    dark, light = two_tones(rng, uniform(rng, 30, 150))
    ink = np.asarray(ink if chance(rng, 0.5) else 1 - ink, np.float32)
    return textured(rng, blend(ink, dark, light), uniform(rng, 2, 12))


def perforated(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Sheet metal, speaker cloth or plastic with holes; [height, width, 3]."""
    pitch = _pitch(rng, width, height, 70, 12)
    xs, ys = wavy(rng, width, height, 0)
    u, v = xs / pitch, ys / pitch
    if chance(rng, 0.5):
        v = v * 1.155
        u = u + (np.floor(v) % 2) * 0.5
    stretch = uniform(rng, 0.35, 1.0) if chance(rng, 0.35) else 1.0
    du, dv = (u % 1 - 0.5), (v % 1 - 0.5) * stretch
    square = chance(rng, 0.25)
    distance = np.maximum(np.abs(du), np.abs(dv)) if square else np.hypot(du, dv)
    radius = uniform(rng, 0.22, 0.44)
    hole = np.clip((radius - distance) * pitch + 0.5, 0, 1)
    rim = np.clip(1 - np.abs(distance - radius) * pitch / 1.5, 0, 1) * (dv > 0)
    dark, light = two_tones(rng, uniform(rng, 60, 170))
    image = blend(np.asarray(hole, np.float32), dark, light) + rim[..., None] * uniform(rng, 0, 60)
    sheen = 1 + smooth_noise(rng, width, height, 2)[..., None] * uniform(rng, 0, 0.3)
    return textured(rng, to_bytes(np.asarray(image * sheen, np.float32)), uniform(rng, 1, 7))


def mesh(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Wire mesh, chain-link or a sieve over a dark ground; [height, width, 3]."""
    pitch = _pitch(rng, width, height, 60, 8)
    xs, ys = wavy(rng, width, height, uniform(rng, 0, pitch * 0.4))
    u, v = xs / pitch, ys / pitch
    if chance(rng, 0.5):
        u, v = (u + v) * 0.7, (u - v) * uniform(rng, 0.5, 0.8)
    thin = uniform(rng, 0.08, 0.3)
    wires = np.maximum(
        np.clip((thin - np.abs(u % 1 - 0.5)) * pitch + 0.5, 0, 1),
        np.clip((thin - np.abs(v % 1 - 0.5)) * pitch + 0.5, 0, 1),
    )
    dark, light = two_tones(rng, uniform(rng, 50, 150))
    ink = np.asarray(wires if chance(rng, 0.5) else 1 - wires, np.float32)
    return textured(rng, blend(ink, dark, light), uniform(rng, 2, 10))


def zebra(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Winding stripes of changing width; [height, width, 3]."""
    pitch = _pitch(rng, width, height, 45, 5)
    reach = pitch * (uniform(rng, 0.4, 4) if chance(rng, 0.75) else 0)
    xs, ys = wavy(rng, width, height, reach)
    along = xs if chance(rng, 0.6) else ys
    width_of = uniform(rng, -0.4, 0.4) + 0.4 * smooth_noise(rng, width, height, 6)
    wave = np.sin(along / pitch * _TWO_PI) + width_of
    ink = np.asarray(np.clip(wave * uniform(rng, 2, 9) + 0.5, 0, 1), np.float32)
    dark, light = two_tones(rng, uniform(rng, 80, 200))
    return textured(rng, blend(ink, dark, light), uniform(rng, 2, 10))


def _wall(
    rng: np.random.Generator, xs: Float, ys: Float, size: tuple[float, float], stagger: float
) -> tuple[Indices, Float]:
    """Numbers of the stones of a wall, and how much of each pixel is joint; both [h, w]."""
    row = np.floor(ys / size[1])
    shifted = xs + (row % 2) * stagger * size[0] + size[0] * 64
    column = np.floor(shifted / size[0])
    gap = uniform(rng, 0.03, 0.12) * min(size)
    across = (shifted % size[0]) - size[0] / 2
    down = (ys % size[1]) - size[1] / 2
    edge = np.minimum(size[0] / 2 - np.abs(across), size[1] / 2 - np.abs(down))
    joint = np.clip(gap - edge + 0.5, 0, 1)
    numbers = ((row - row.min()) * 997 + (column - column.min())).astype(np.int64)
    return numbers, np.asarray(joint, np.float32)


def wall(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Bricks, paving or square tiles; [height, width, 3]."""
    xs, ys = wavy(rng, width, height, uniform(rng, 0, 3))
    high = _pitch(rng, width, height, 40, 5)
    shape, stagger = (1.0, 0.0) if chance(rng, 0.5) else (uniform(rng, 1.6, 4), 0.5)
    numbers, joint = _wall(rng, xs, ys, (high * shape, high), stagger)
    stones = chosen(rng, palette(rng, integer(rng, 2, 9), uniform(rng, 10, 110)), numbers)
    grout, _ = two_tones(rng)
    if chance(rng, 0.5):
        grout = np.clip(grout + 130, 0, 255)
    image = stones + (grout - stones) * joint[..., None]
    return textured(rng, to_bytes(np.asarray(image, np.float32)), uniform(rng, 3, 22))


def pennies(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Round mosaic tiles, or patterned rings as on wallpaper; [height, width, 3]."""
    pitch = _pitch(rng, width, height, 55, 10)
    xs, ys = wavy(rng, width, height, uniform(rng, 0, pitch * 0.3))
    u, v = xs / pitch + 8, ys / pitch + 8
    if chance(rng, 0.5):
        u = u + (np.floor(v) % 2) * 0.5
    numbers = (np.floor(v) * 509 + np.floor(u)).astype(np.int64)
    distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    disc = np.clip((uniform(rng, 0.36, 0.5) - distance) * pitch + 0.5, 0, 1)
    if chance(rng, 0.35):
        disc = disc * np.clip((distance - uniform(rng, 0.12, 0.3)) * pitch + 0.5, 0, 1)
    shades = chosen(rng, palette(rng, integer(rng, 2, 6), uniform(rng, 20, 110)), numbers)
    if chance(rng, 0.4):  # patches of one colour
        patch = smooth_noise(rng, width, height, 4)[..., None] > 0
        shades = np.where(patch, shades, np.asarray(two_tones(rng)[0]))
    ground, _ = two_tones(rng)
    image = ground + (shades - ground) * disc[..., None]
    return textured(rng, to_bytes(np.asarray(image, np.float32)), uniform(rng, 3, 14))


def foliage(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Grass, leaves or fur: short strokes of many shades; [height, width, 3]."""
    long = uniform(rng, 3, 14)
    rough = rng.uniform(-1, 1, (height, width)).astype(np.float32)
    angle = uniform(rng, 0, np.pi)
    size = int(long) | 1
    kernel = np.zeros((size, size), np.float32)
    for step in np.linspace(-1, 1, size * 2):
        at = size // 2 + np.array([np.sin(angle), np.cos(angle)]) * step * (size // 2)
        kernel[round(float(at[0])), round(float(at[1]))] = 1
    strokes = cv2.filter2D(rough, -1, kernel / kernel.sum()) * np.sqrt(size)
    dark, light = two_tones(rng, uniform(rng, 40, 120))
    ink = np.asarray(np.clip(0.5 + strokes * uniform(rng, 0.3, 0.9), 0, 1), np.float32)
    return one_sided_light(rng, blend(ink, dark, light))


def one_sided_light(rng: np.random.Generator, image: Bytes) -> Bytes:
    """Brightens one side of an image."""
    height, width = image.shape[:2]
    xs, ys = grids(width, height)
    slope = rng.uniform(-0.4, 0.4, 2)
    gain = 1 + slope[0] * (xs / width - 0.5) + slope[1] * (ys / height - 0.5)
    return to_bytes(np.asarray(image * gain[..., None], np.float32))


TEXTURES = (
    (knit, 1.0), (woven, 1.2), (plaid, 0.6), (carpet, 2.0), (stone, 1.0), (perforated, 1.3),
    (mesh, 0.8), (zebra, 0.8), (wall, 1.3), (pennies, 1.0), (foliage, 0.5),
)  # fmt: skip
