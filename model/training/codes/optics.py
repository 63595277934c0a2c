"""Light, objects in front of the codes, and the camera."""

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

Box = tuple[float, float, float, float]


def _blob(rng: np.random.Generator, width: int, height: int, at: Box, soft: float) -> Float:
    """A soft-edged ellipse or polygon somewhere over a box; [height, width] 0..1."""
    mask = np.zeros((height, width), np.float32)
    left, top, right, bottom = at
    centre = (int(uniform(rng, left, right)), int(uniform(rng, top, bottom)))
    span = max(4.0, min(right - left, bottom - top))
    if chance(rng, 0.5):
        axes = (int(span * uniform(rng, 0.1, 0.6)) + 1, int(span * uniform(rng, 0.1, 0.6)) + 1)
        cv2.ellipse(mask, centre, axes, uniform(rng, 0, 180), 0, 360, 1.0, -1)
    else:
        points = np.array(centre) + rng.uniform(-span * 0.8, span * 0.8, (integer(rng, 3, 5), 2))
        cv2.fillPoly(mask, [cv2.convexHull(points.astype(np.int32))], 1.0)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), max(0.5, soft)), np.float32)


def light(rng: np.random.Generator, image: Bytes) -> Bytes:
    """Adds uneven light, shadows, vignetting and glare; same shape."""
    height, width = image.shape[:2]
    gain = np.ones((height, width), np.float32)
    whole = (0.0, 0.0, float(width), float(height))
    span = max(width, height)
    if chance(rng, 0.5):
        gain *= 1 + smooth_noise(rng, width, height, uniform(rng, 1, 2.5)) * uniform(rng, 0.05, 0.4)
    if chance(rng, 0.2):
        soft = span * log_uniform(rng, 0.005, 0.12)
        gain *= 1 - _blob(rng, width, height, whole, soft) * uniform(rng, 0.15, 0.6)
    if chance(rng, 0.2):
        ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        gain *= 1 - (xs**2 + ys**2) * uniform(rng, 0.08, 0.3)
    out = image * gain[..., None]
    if chance(rng, 0.12):
        size = span * uniform(rng, 0.03, 0.2)
        x, y = uniform(rng, 0, width), uniform(rng, 0, height)
        spot = (x - size, y - size, x + size, y + size)
        glare = _blob(rng, width, height, spot, size * uniform(rng, 0.2, 0.6))
        out = out + glare[..., None] * uniform(rng, 60, 255)
    return to_bytes(np.asarray(out, np.float32))


def cover(rng: np.random.Generator, image: Bytes, box: Box) -> Bytes:
    """Hides part of a box: finger-like blob at a rim, tape, pen strokes or glare."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    span = min(right - left, bottom - top)
    out = image.astype(np.float32)
    kind = integer(rng, 0, 3)
    if kind == 0:
        rim = pick(rng, ((left, top), (right, top), (left, bottom), (right, bottom)))
        reach = span * 0.2
        spot = (rim[0] - reach, rim[1] - reach, rim[0] + reach, rim[1] + reach)
        mask = _blob(rng, width, height, spot, 1.0)[..., None]
        skin = np.array([220, 170, 140]) * uniform(rng, 0.4, 1.1) + rng.uniform(-15, 15, 3)
        out += (skin - out) * mask
    elif kind == 1:
        mask = np.zeros((height, width), np.float32)
        y = int(uniform(rng, top, bottom))
        x = int(uniform(rng, left, right))
        dx, dy = rng.uniform(-span, span, 2)
        thick = max(1, int(span * uniform(rng, 0.05, 0.2)))
        cv2.line(mask, (int(x - dx), int(y - dy)), (int(x + dx), int(y + dy)), 1.0, thick)
        out += (rng.uniform(0, 255, 3) - out) * (mask * uniform(rng, 0.3, 0.9))[..., None]
    elif kind == 2:  # noqa: PLR2004
        points = [[uniform(rng, left, right), uniform(rng, top, bottom)]]
        for _ in range(integer(rng, 2, 9)):
            step = rng.uniform(-span / 3, span / 3, 2)
            points.append([points[-1][0] + step[0], points[-1][1] + step[1]])
        colour = tuple(float(v) for v in rng.uniform(0, 140, 3))
        thick = max(1, int(span * uniform(rng, 0.008, 0.03)))
        cv2.polylines(out, [np.array(points, np.int32)], False, colour, thick, cv2.LINE_AA)
    else:
        cx, cy, reach = uniform(rng, left, right), uniform(rng, top, bottom), span * 0.25
        spot = (cx - reach, cy - reach, cx + reach, cy + reach)
        mask = _blob(rng, width, height, spot, span * 0.06)[..., None]
        out += (255 - out) * mask * uniform(rng, 0.5, 1)
    return to_bytes(np.asarray(out, np.float32))


def _motion(rng: np.random.Generator, image: Bytes, length: float) -> Bytes:
    size = max(3, int(length) | 1)
    kernel = np.zeros((size, size), np.float32)
    angle, mid = uniform(rng, 0, np.pi), size // 2
    dx, dy = np.cos(angle) * mid, np.sin(angle) * mid
    start, end = (round(mid - dx), round(mid - dy)), (round(mid + dx), round(mid + dy))
    cv2.line(kernel, start, end, 1.0, 1)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)


def _blur(rng: np.random.Generator, image: Bytes, cell: float) -> Bytes:
    """Defocus, motion blur or lost resolution, bounded by the smallest module size."""
    reach = max(0.6, cell)
    kind = integer(rng, 0, 3)
    if kind == 0:
        sigma = max(0.35, reach * log_uniform(rng, 0.12, 0.9))
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if kind == 1:
        return _motion(rng, image, reach * uniform(rng, 0.6, 2.5))
    if kind == 2:  # noqa: PLR2004
        height, width = image.shape[:2]
        factor = max(1.15, min(6.0, reach * uniform(rng, 0.3, 1.1)))
        small = resize(image, int(width / factor), int(height / factor))
        return np.asarray(resize(small, width, height, nearest=chance(rng, 0.2)), np.uint8)
    soft = cv2.GaussianBlur(image, (0, 0), uniform(rng, 0.7, 1.6))
    amount = uniform(rng, 0.4, 1.6)
    return np.asarray(cv2.addWeighted(image, 1 + amount, soft, -amount, 0), np.uint8)


def _noise(rng: np.random.Generator, image: Bytes) -> Bytes:
    height, width = image.shape[:2]
    sigma = log_uniform(rng, 1.0, 16)
    channels = 1 if chance(rng, 0.5) else 3
    grain = rng.standard_normal((height, width, channels), np.float32) * sigma
    out = image.astype(np.float32)
    if chance(rng, 0.4):
        grain = grain * np.sqrt(out / 140 + 0.1)
    return to_bytes(np.asarray(out + grain, np.float32))


def _tones(rng: np.random.Generator, image: Bytes) -> Bytes:
    """White balance, gamma, contrast and brightness through one lookup table per channel."""
    ramp = np.arange(256, dtype=np.float32)[:, None] / 255
    gamma = log_uniform(rng, 0.6, 1.7)
    balance = rng.uniform(0.85, 1.12, 3) if chance(rng, 0.5) else np.ones(3)
    contrast, lift = uniform(rng, 0.55, 1.2), uniform(rng, -0.1, 0.2)
    table = ((ramp**gamma) * balance * contrast + lift) * 255
    return np.asarray(cv2.LUT(image, to_bytes(table.astype(np.float32))[None]), np.uint8)


def _grey(image: Bytes) -> Bytes:
    one = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(np.asarray(one, np.uint8)[..., None], 3, 2)


def _scan(rng: np.random.Generator, image: Bytes) -> Bytes:
    """Thresholds to two levels, as a fax or a 1-bit scan does."""
    one = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if chance(rng, 0.4):
        block = max(3, min(image.shape[:2]) // integer(rng, 2, 8)) | 1
        flat = cv2.adaptiveThreshold(one, 255, 0, cv2.THRESH_BINARY, block, 8)
    else:
        _, flat = cv2.threshold(one, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.repeat(np.asarray(flat, np.uint8)[..., None], 3, 2)


def _screen(rng: np.random.Generator, image: Bytes) -> Bytes:
    """Overlays the fine regular pattern seen when a display is photographed."""
    height, width = image.shape[:2]
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, pitch = uniform(rng, -0.2, 0.2), uniform(rng, 2.2, 7)
    u = (xs * np.cos(angle) + ys * np.sin(angle)) * 2 * np.pi / pitch
    v = (ys * np.cos(angle) - xs * np.sin(angle)) * 2 * np.pi / pitch
    depth = uniform(rng, 0.04, 0.2)
    phase = np.array([0, 2, 4]) * float(chance(rng, 0.5))
    gain = 1 - depth * (1 + np.sin(u[..., None] + phase) * (0.6 + 0.4 * np.sin(v))[..., None])
    return to_bytes(np.asarray(image * gain, np.float32))


def camera(rng: np.random.Generator, image: Bytes, cell: float, strength: float = 1.0) -> Bytes:
    """Simulates the camera: blur, noise, tones, grey or 1-bit.

    Args:
        rng: Source of randomness.
        image: [H, W, 3] uint8 RGB.
        cell: Smallest module in the image in pixels; bounds the blur.
        strength: Scales how likely each flaw is, 0..1.

    Returns:
        Same shape, uint8.
    """
    out = _screen(rng, image) if chance(rng, 0.04 * strength) else image
    if chance(rng, 0.65 * strength):
        out = _blur(rng, out, cell)
        if chance(rng, 0.25):
            out = _blur(rng, out, cell * 0.7)
    if chance(rng, 0.65 * strength):
        out = _tones(rng, out)
    if chance(rng, 0.45 * strength):
        out = _noise(rng, out)
    if chance(rng, 0.25):
        out = _grey(out)
    elif chance(rng, 0.03):
        out = _scan(rng, out)
    if chance(rng, 0.25 * strength):
        quality = integer(rng, 25, 80)
        _, data = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])
        out = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(out)
