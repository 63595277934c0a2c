"""Backgrounds: procedural materials and the photos in scikit-image and scikit-learn."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from model.data.image_files import read_pixels
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
    weighted,
)

_PHOTO_NAMES = (
    ("skimage", "data", (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png",
        "coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
        "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
    )),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)  # fmt: skip
_PHOTO_SIDE = 720


@functools.cache
def bundled_photos() -> tuple[Bytes, ...]:
    """Loads the photos bundled in scikit-image and scikit-learn.

    Returns:
        RGB uint8 images, longest side at most 720; empty if neither package is installed.
    """
    found: list[Bytes] = []
    for package, folder, names in _PHOTO_NAMES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for name in names:
            path = Path(spec.origin).parent / folder / name
            if not path.exists():
                continue
            image = read_pixels(path)
            scale = min(1.0, _PHOTO_SIDE / max(image.shape[:2]))
            small = resize(image, int(image.shape[1] * scale), int(image.shape[0] * scale))
            found.append(np.ascontiguousarray(small, np.uint8))
    return tuple(found)


def photo(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Cuts a random piece of a bundled photo, mirrored and recoloured; [height, width, 3]."""
    stock = bundled_photos()
    if not stock:
        return gradient(rng, width, height)
    source = pick(rng, stock)
    if chance(rng, 0.3):
        source = np.ascontiguousarray(np.rot90(source, integer(rng, 1, 3)))
    full_h, full_w = source.shape[:2]
    scale = min(full_w / width, full_h / height) * log_uniform(rng, 0.3, 1.0)
    w, h = max(2, int(width * scale)), max(2, int(height * scale))
    x, y = integer(rng, 0, max(0, full_w - w)), integer(rng, 0, max(0, full_h - h))
    piece = source[y : y + h, x : x + w]
    if chance(rng, 0.5):
        piece = piece[:, ::-1]
    out = resize(np.ascontiguousarray(piece), width, height).astype(np.float32)
    gain = rng.uniform(0.7, 1.25, 3) if chance(rng, 0.5) else uniform(rng, 0.6, 1.2)
    return to_bytes(np.asarray(out * gain + uniform(rng, -25, 25), np.float32))


def _tone(rng: np.random.Generator) -> Float:
    """Draws a colour; greys and muted colours are common."""
    level = uniform(rng, 15, 245)
    spread = pick(rng, (0.0, 10.0, 30.0, 80.0))
    return np.asarray(np.clip(level + rng.uniform(-spread, spread, 3), 0, 255), np.float32)


def plain(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Makes a plain surface with slight variations; [height, width, 3]."""
    base = np.broadcast_to(_tone(rng), (height, width, 3))
    soft = smooth_noise(rng, width, height, uniform(rng, 1, 6))[..., None]
    return to_bytes(np.asarray(base + soft * uniform(rng, 0, 12), np.float32))


def gradient(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Blends two colours along a direction or a smooth field; [height, width, 3]."""
    first, second = _tone(rng), _tone(rng)
    if chance(rng, 0.5):
        angle = uniform(rng, 0, 2 * np.pi)
        ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
        ramp = xs / width * np.cos(angle) + ys / height * np.sin(angle)
        ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
    else:
        ramp = smooth_noise(rng, width, height, uniform(rng, 1, 4)) * 0.5 + 0.5
    return to_bytes(np.asarray(first + (second - first) * ramp[..., None], np.float32))


def noise(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Sums octaves of noise, as stone, plaster or cardboard; [height, width, 3]."""
    field = np.zeros((height, width), np.float32)
    cells, gain = uniform(rng, 2, 12), uniform(rng, 0.35, 0.9)
    for octave in range(5):
        many = min(cells * 2**octave, max(width, height) / 1.5)
        field += smooth_noise(rng, width, height, many) * gain**octave
    tint = rng.uniform(0.8, 1.0, 3) if chance(rng, 0.5) else np.ones(3)
    level, depth = uniform(rng, 40, 220), uniform(rng, 8, 60)
    return to_bytes(np.asarray((level + field[..., None] * depth) * tint, np.float32))


def wood(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Draws wood-like or brushed-metal-like grain; [height, width, 3]."""
    long, short = uniform(rng, 1, 3), uniform(rng, 25, 90)
    grain = resize(rng.uniform(-1, 1, (int(short) + 2, int(long) + 2)).astype("f"), width, height)
    fine = resize(rng.uniform(-1, 1, (height, int(long * 3) + 2)).astype("f"), width, height)
    ring = np.sin(smooth_noise(rng, width, height, 3) * uniform(rng, 2, 14) + grain * 2)
    base = rng.uniform([90, 55, 25], [210, 160, 110]) if chance(rng, 0.6) else _tone(rng)
    shade = 1 + 0.12 * ring + 0.1 * grain + 0.08 * fine
    out = np.asarray(base * shade[..., None], np.float32)
    return to_bytes(np.ascontiguousarray(out))


def cloth(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Weaves a fabric-like pattern, sometimes with checks; [height, width, 3]."""
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    pitch = uniform(rng, 2.5, 9)
    weave = np.sin(xs * 2 * np.pi / pitch) * np.sin(ys * 2 * np.pi / pitch)
    out = _tone(rng) * (1 + uniform(rng, 0.05, 0.25) * weave[..., None])
    if chance(rng, 0.4):
        wide = uniform(rng, 15, 80)
        band = ((xs // wide) % 2 + (ys // wide) % 2)[..., None] * 0.5
        out = out * (1 - band * uniform(rng, 0.1, 0.5))
    out = out + smooth_noise(rng, width, height, 5)[..., None] * 15
    return to_bytes(np.asarray(out, np.float32))


def scribbles(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Scatters coloured shapes, as packaging art or clutter would look; [height, width, 3]."""
    canvas = np.ascontiguousarray(gradient(rng, width, height))
    for _ in range(integer(rng, 3, 14)):
        colour = tuple(float(v) for v in _tone(rng))
        centre = (integer(rng, 0, width), integer(rng, 0, height))
        if chance(rng, 0.5):
            axes = (integer(rng, 3, max(4, width // 3)), integer(rng, 3, max(4, height // 3)))
            cv2.ellipse(canvas, centre, axes, uniform(rng, 0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            spread = max(width, height) * 0.35
            points = np.array(centre) + rng.uniform(-spread, spread, (integer(rng, 3, 5), 2))
            cv2.fillPoly(canvas, [points.astype(np.int32)], colour, cv2.LINE_AA)
    if chance(rng, 0.6):
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), log_uniform(rng, 0.5, 9)), np.uint8)
    return canvas


_Maker = Callable[[np.random.Generator, int, int], Bytes]
_MAKERS: tuple[tuple[_Maker, float], ...] = (
    (photo, 0.34),
    (plain, 0.14),
    (gradient, 0.1),
    (noise, 0.13),
    (wood, 0.09),
    (cloth, 0.07),
    (scribbles, 0.13),
)


def background(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Draws any background.

    Args:
        rng: Source of randomness.
        width: Pixels across.
        height: Pixels down.

    Returns:
        [height, width, 3] uint8 RGB.
    """
    maker = weighted(rng, _MAKERS)
    image = maker(rng, width, height)
    if chance(rng, 0.25):
        sigma = log_uniform(rng, 0.6, 8)
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    return np.ascontiguousarray(image)
