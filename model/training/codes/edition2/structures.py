"""Built things with regular lines: blinds, fences, facades, shelves, keyboards, boards."""

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
    smooth_noise,
    to_bytes,
    uniform,
)
from model.training.codes.edition2.ink import (
    blend,
    colour,
    font,
    grids,
    palette,
    textured,
    tone,
    two_tones,
    wavy,
    word,
    write,
)
from model.training.codes.edition2.textures import one_sided_light


def _canvas(values: Float, width: int, height: int) -> Bytes:
    return np.ascontiguousarray(np.broadcast_to(values, (height, width, 3)).astype(np.uint8))


def blinds(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Window blinds or shutters with slats and cords; [height, width, 3]."""
    xs, ys = wavy(rng, width, height, uniform(rng, 0, 2))
    along = ys if chance(rng, 0.75) else xs
    period = max(4.0, max(width, height) / log_uniform(rng, 8, 60))
    phase = (along / period) % 1
    slat = 1 - phase * uniform(rng, 0.2, 0.8)
    gap = np.clip((phase - uniform(rng, 0.6, 0.95)) * period, 0, 1)
    base, behind = tone(rng), tone(rng)
    image = base * slat[..., None]
    image = image + (behind - image) * gap[..., None]
    across = xs if along is ys else ys
    for at in rng.uniform(0, max(width, height), integer(rng, 0, 4)):
        cord = np.clip(uniform(rng, 0.6, 1.6) - np.abs(across - at), 0, 1)[..., None]
        image = image * (1 - cord * uniform(rng, 0.3, 0.9))
    return one_sided_light(rng, to_bytes(np.asarray(image, np.float32)))


def bars(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Evenly spaced round bars: a radiator, grille, crate or comb; [height, width, 3]."""
    xs, ys = wavy(rng, width, height, uniform(rng, 0, 3))
    period = max(4.0, max(width, height) / log_uniform(rng, 8, 90))
    phase = (xs / period) % 1
    share = uniform(rng, 0.3, 0.8)
    bar = np.clip((share / 2 - np.abs(phase - 0.5)) * period + 0.5, 0, 1)
    round_shade = np.sqrt(np.clip(1 - ((phase - 0.5) / (share / 2)) ** 2, 0.1, 1))
    steel, behind = tone(rng), tone(rng) * uniform(rng, 0.2, 1)
    image = behind + (steel * round_shade[..., None] - behind) * bar[..., None]
    for at in rng.uniform(0, height, integer(rng, 0, 3)):
        thick = uniform(rng, 2, max(3.0, height / 14))
        rail = np.clip(thick - np.abs(ys - at), 0, 1)[..., None]
        image = image + (steel * 0.8 - image) * rail
    return textured(rng, to_bytes(np.asarray(image, np.float32)), uniform(rng, 2, 10))


def fence(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Upright planks of uneven widths with gaps between them; [height, width, 3]."""
    image = _canvas(tone(rng), width, height).astype(np.float32)
    behind = smooth_noise(rng, width, height, uniform(rng, 2, 12))[..., None]
    image += behind * uniform(rng, 10, 60)
    wood, x = tone(rng), -uniform(rng, 0, 20)
    mean = max(5.0, width / log_uniform(rng, 8, 45))
    uneven = uniform(rng, 0.05, 0.5)
    top = int(height * uniform(rng, 0, 0.3))
    while x < width:
        wide = mean * uniform(rng, 1 - uneven, 1 + uneven)
        left, right = max(0, int(x)), min(width, int(x + wide))
        if right > left:
            start = 0 if chance(rng, 0.5) else max(0, top + integer(rng, -4, 4))
            grain = rng.uniform(-1, 1, (1, right - left, 1)) * 10
            image[start:, left:right] = wood * uniform(rng, 0.75, 1.15) + grain
        x += wide + max(1.0, mean * uniform(rng, 0.05, 0.9) * uneven)
    for at in rng.uniform(0.1, 0.9, integer(rng, 1, 2) if chance(rng, 0.85) else 0):
        thick = max(2, int(height * uniform(rng, 0.02, 0.08)))
        image[int(at * height) : int(at * height) + thick] *= uniform(rng, 0.6, 0.95)
    return textured(rng, to_bytes(image), uniform(rng, 4, 18))


def stacks(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rows of sticks, pipes, papers or wafers of changing pitch; [height, width, 3]."""
    xs, _ = wavy(rng, width, height, uniform(rng, 0, 3))
    image = np.zeros((height, width, 3), np.float32)
    dark, light = two_tones(rng, uniform(rng, 50, 150))
    pitch, top = max(3.0, width / log_uniform(rng, 14, 80)), 0
    mean = height / log_uniform(rng, 3, 16)
    while top < height:
        bottom = min(height, top + max(4, int(mean * uniform(rng, 0.5, 1.5))))
        period = pitch * uniform(rng, 0.85, 1.2)
        rows = xs[top:bottom] / period + uniform(rng, 0, 1)
        noise = rng.uniform(-0.3, 0.3, 256)[np.floor(rows).astype(int) % 256]
        ink = np.clip(0.5 + noise + 0.6 * np.cos(rows * 2 * np.pi), 0, 1)
        edge = np.linspace(0, np.pi, bottom - top)[:, None]
        shaded = np.asarray(1 - (1 - ink) * (0.55 + 0.45 * np.sin(edge)), np.float32)
        image[top:bottom] = blend(shaded, dark, light)
        top = bottom
    return textured(rng, to_bytes(image), uniform(rng, 3, 14))


def facade(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """A house front with rows of windows; [height, width, 3]."""
    image = textured(rng, _canvas(tone(rng), width, height), uniform(rng, 3, 16))
    columns, rows = int(log_uniform(rng, 4, 26)), int(log_uniform(rng, 4, 26))
    step_x, step_y = width / columns, height / rows
    share_x, share_y = uniform(rng, 0.45, 0.9), uniform(rng, 0.45, 0.9)
    frame, glass = colour(tone(rng)), tone(rng) * 0.7
    panes = integer(rng, 0, 2)
    for i in range(rows):
        if chance(rng, 0.15):
            ledge = int(i * step_y)
            below = ledge + max(1, int(step_y * 0.12))
            cv2.rectangle(image, (0, ledge), (width, below), frame, -1)
        for j in range(columns):
            x, y = (j + 0.5) * step_x, (i + 0.5) * step_y
            dx, dy = step_x * share_x / 2, step_y * share_y / 2
            box = ((int(x - dx), int(y - dy)), (int(x + dx), int(y + dy)))
            shade = glass * uniform(rng, 0.5, 1.3) + (70 if chance(rng, 0.12) else 0)
            cv2.rectangle(image, *box, colour(shade), -1)
            if min(step_x, step_y) > 9:  # noqa: PLR2004
                cv2.rectangle(image, *box, frame, 1)
                for pane in range(panes):
                    at = int(x - dx + 2 * dx * (pane + 1) / (panes + 1))
                    cv2.line(image, (at, box[0][1]), (at, box[1][1]), frame, 1)
    return one_sided_light(rng, image)


def _spine(
    rng: np.random.Generator, image: Bytes, box: tuple[int, int, int, int], shade: Float
) -> None:
    """Paints one book or folder upright, with bands and lettering."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    cv2.rectangle(image, (left, top), (right, bottom), colour(shade), -1)
    dark = shade.mean() < 120  # noqa: PLR2004
    letters = np.clip(shade + (130 if dark else -130), 0, 255).astype(np.float32)
    for _ in range(integer(rng, 0, 2)):
        y = integer(rng, top, bottom)
        cv2.rectangle(image, (left, y), (right, y + max(1, high // 30)), colour(letters), -1)
    if wide >= 8 and high > 24 and chance(rng, 0.8):  # noqa: PLR2004
        ink = np.zeros((wide, high), np.float32)
        size = min(int(wide * uniform(rng, 0.4, 0.8)), 26)
        write(ink, word(rng) + " " + word(rng), (high * 0.1, wide * 0.15), font(rng, size))
        turned = np.rot90(ink, pick(rng, (1, 3)))[..., None]
        area = image[top:bottom, left:right]
        area[...] = (area + (letters - area) * turned[: area.shape[0], : area.shape[1]]).astype(
            "u1"
        )
    edge = max(1, wide // 12)
    image[top:bottom, right - edge : right] = image[top:bottom, right - edge : right] // 2


def shelf(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Books, folders or records side by side; [height, width, 3]."""
    image = _canvas(tone(rng) * 0.4, width, height)
    high = height / integer(rng, 1, 4)
    shades = palette(rng, integer(rng, 2, 12), uniform(rng, 20, 130))
    mean = max(4.0, width / log_uniform(rng, 10, 60))
    board, top = colour(tone(rng)), 0.0
    while top < height:
        floor, x = int(top + high), 0.0
        while x < width:
            wide = max(3.0, mean * uniform(rng, 0.4, 1.7))
            crown = int(top + high * uniform(rng, 0.08, 0.3))
            if chance(rng, 0.95) and int(x + wide) <= width:
                shade = shades[integer(rng, 0, len(shades) - 1)] * uniform(rng, 0.8, 1.1)
                box = (int(x), max(0, crown), int(x + wide), min(floor, height))
                if box[3] > box[1] and box[2] > box[0]:
                    _spine(rng, image, box, np.clip(shade, 0, 255).astype(np.float32))
            x += wide + (uniform(rng, 0, 2) if chance(rng, 0.9) else wide)
        cv2.rectangle(image, (0, floor - 3), (width, floor + integer(rng, 2, 8)), board, -1)
        top += high
    return textured(rng, image, uniform(rng, 2, 8))


def keyboard(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Rows of labelled keys; [height, width, 3]."""
    base = tone(rng)
    image = _canvas(base * uniform(rng, 0.4, 0.9), width, height)
    key = max(8.0, width / log_uniform(rng, 6, 22))
    face = np.clip(base + uniform(rng, -30, 40), 0, 255).astype(np.float32)
    letters = 0.0 if face.mean() > 110 else 1.0  # noqa: PLR2004
    ink, y, gap = np.zeros((height, width), np.float32), -uniform(rng, 0, key), key * 0.1
    face_font = font(rng, int(key * uniform(rng, 0.25, 0.4)))
    while y < height:
        x = -uniform(rng, 0, key)
        while x < width:
            wide = key * (1 if chance(rng, 0.88) else uniform(rng, 1.3, 4))
            left, top = int(x + gap), int(y + gap)
            right, bottom = int(x + wide - gap), int(y + key - gap)
            side = colour(face * 0.65)
            cv2.rectangle(image, (left, top), (right, bottom), side, -1)
            inset = max(1, int(key * 0.07))
            inner = ((left + inset, top + inset // 2), (right - inset, bottom - inset * 2))
            cv2.rectangle(image, *inner, colour(face), -1)
            text = pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ1234567890+-/?;")
            write(ink, text, (left + key * 0.2, top + key * 0.15), face_font)
            x += wide
        y += key
    target = np.full(3, letters * 235 + 10, np.float32)
    mixed = image + (target - image) * ink[..., None]
    return one_sided_light(rng, to_bytes(np.asarray(mixed, np.float32)))


def circuit(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """A circuit board: tracks, pads, chips with legs; [height, width, 3]."""
    ground = rng.uniform([0, 40, 10], [50, 120, 60]) if chance(rng, 0.6) else tone(rng) * 0.6
    ground = np.asarray(ground, np.float32)
    image = _canvas(ground, width, height)
    copper = colour(np.clip(ground * 1.35 + 14, 0, 255))
    unit = max(3.0, max(width, height) / log_uniform(rng, 40, 130))
    for _ in range(integer(rng, 20, 70)):
        x, y = integer(rng, 0, width), integer(rng, 0, height)
        points = [(x, y)]
        for _ in range(integer(rng, 1, 4)):
            dx, dy = pick(rng, ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1)))
            reach = unit * uniform(rng, 2, 20)
            points.append((int(points[-1][0] + dx * reach), int(points[-1][1] + dy * reach)))
        thick = max(1, int(unit * uniform(rng, 0.2, 0.5)))
        cv2.polylines(image, [np.array(points, np.int32)], False, copper, thick, cv2.LINE_AA)
        for point in (points[0], points[-1]):
            cv2.circle(
                image, point, max(1, int(unit * 0.6)), (190.0, 170.0, 110.0), -1, cv2.LINE_AA
            )
    for _ in range(integer(rng, 3, 16)):
        _chip(rng, image, unit)
    return textured(rng, image, uniform(rng, 2, 8))


def _chip(rng: np.random.Generator, image: Bytes, unit: float) -> None:
    """Paints one component with legs along its sides."""
    height, width = image.shape[:2]
    wide, high = (int(unit * uniform(rng, 3, 16)) for _ in range(2))
    x, y = integer(rng, 0, width), integer(rng, 0, height)
    metal, legs = colour(np.full(3, uniform(rng, 150, 225), np.float32)), max(2.0, unit * 0.9)
    reach = max(1, int(unit * 0.7))
    for at in np.arange(x + legs / 2, x + wide, legs):
        cv2.rectangle(
            image, (int(at), y - reach), (int(at + legs * 0.45), y + high + reach), metal, -1
        )
    if chance(rng, 0.5):
        for at in np.arange(y + legs / 2, y + high, legs):
            cv2.rectangle(
                image, (x - reach, int(at)), (x + wide + reach, int(at + legs * 0.45)), metal, -1
            )
    shade = tone(rng) * (0.25 if chance(rng, 0.7) else 0.8)
    cv2.rectangle(image, (x, y), (x + wide, y + high), colour(shade), -1)
    if wide > 20 and high > 10:  # noqa: PLR2004
        ink = np.zeros((height, width), np.float32)
        write(ink, word(rng).upper(), (x + wide * 0.15, y + high * 0.3), font(rng, high // 3))
        shown = np.asarray(image + (200.0 - image) * ink[..., None] * 0.8, np.float32)
        image[...] = to_bytes(shown)


def floor(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Boards or planks of a floor; [height, width, 3]."""
    xs, ys = grids(width, height)
    high = max(5.0, height / log_uniform(rng, 4, 26))
    row = np.floor(ys / high)
    long = high * uniform(rng, 4, 12)
    column = np.floor((xs + (row * 0.37 % 1) * long) / long)
    shade = rng.uniform(0.7, 1.15, 1024)[(row * 31 + column * 7).astype(int) % 1024]
    joint = np.clip(1.2 - np.minimum(ys % high, (xs + (row * 0.37 % 1) * long) % long), 0, 1)
    grain = smooth_noise(rng, width, max(2, height), max(width, height) / 6) * 0.06
    image = tone(rng) * (shade + grain)[..., None] * (1 - 0.6 * joint)[..., None]
    return textured(rng, to_bytes(np.asarray(image, np.float32)), uniform(rng, 2, 10))


STRUCTURES = (
    (blinds, 1.3), (bars, 1.2), (fence, 1.2), (stacks, 1.6), (facade, 1.0), (shelf, 1.4),
    (keyboard, 0.8), (circuit, 0.8), (floor, 0.5),
)  # fmt: skip
