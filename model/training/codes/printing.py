"""Prints a symbol's cells as ink: module shapes, bleed, dots, logos."""

from __future__ import annotations

import cv2
import numpy as np

from model.training.codes.common import (
    Float,
    chance,
    pick,
    resize,
    uniform,
    weighted,
)
from model.training.codes.lettering import draw_line
from model.training.codes.symbols import DATA_MATRIX, LINEAR, PDF417, QR_CODE, Symbol

_MAX_SIDE = 1400


def _cell_sizes(symbol: Symbol, px: float) -> tuple[int, int]:
    """Picks whole working pixels per cell (across, down) for a target cell size."""
    rows, columns = symbol.bits.shape
    across = int(np.clip(np.ceil(px * 1.5), 2, 12))
    across = max(1, min(across, _MAX_SIDE // columns))
    down = 1
    if symbol.stretch != 1.0 or symbol.label != LINEAR:
        down = max(1, min(round(across * symbol.stretch), _MAX_SIDE // rows))
    elif across > 1:
        down = across
    return across, down


def _dots(symbol: Symbol, across: int, down: int, radius: float) -> Float:
    """Draws each inked cell as a disc of `radius` cells; returns ink 0..1."""
    ys, xs = np.mgrid[0:down, 0:across]
    dx = (xs + 0.5) / across - 0.5
    dy = (ys + 0.5) / down - 0.5
    tile = np.clip((radius - np.hypot(dx, dy)) * across + 0.5, 0, 1).astype(np.float32)
    return np.kron(symbol.bits.astype(np.float32), tile)


def _round_corners(ink: Float, across: int) -> Float:
    """Rounds the corners of inked areas by blur and threshold."""
    soft = cv2.GaussianBlur(ink, (0, 0), max(0.3, 0.3 * across))
    return np.asarray(np.clip((soft - 0.5) * across * 0.8 + 0.5, 0, 1), np.float32)


def _bleed(rng: np.random.Generator, ink: Float, across: int) -> Float:
    """Grows or thins the ink by up to about a fifth of a cell, unevenly along edges."""
    soft = cv2.GaussianBlur(ink, (0, 0), max(0.3, 0.22 * across))
    cut = uniform(rng, 0.3, 0.68)
    field: Float | float = cut
    if chance(rng, 0.4):
        noise = rng.uniform(-0.25, 0.25, (ink.shape[0] // 2 + 1, ink.shape[1] // 2 + 1))
        field = cut + resize(noise.astype(np.float32), ink.shape[1], ink.shape[0])
    return np.asarray(np.clip((soft - field) * 4 + 0.5, 0, 1), np.float32)


def _fade(rng: np.random.Generator, ink: Float) -> Float:
    """Leaves streaks and specks without ink, as a worn print head does."""
    height, width = ink.shape
    out = ink.copy()
    if chance(rng, 0.5):
        for _ in range(int(rng.integers(1, 4))):
            at, thick = int(rng.integers(height)), max(1, int(height * uniform(rng, 0.003, 0.015)))
            out[at : at + thick] *= uniform(rng, 0, 0.6)
    else:
        specks = rng.random((height // 3 + 1, width // 3 + 1)) < uniform(rng, 0.01, 0.08)
        lost = resize(specks.astype(np.float32), width, height)
        out *= 1 - lost * uniform(rng, 0.4, 1.0)
    return out


def _logo(rng: np.random.Generator, ink: Float) -> Float:
    """Clears the middle of a QR code and draws a simple emblem there."""
    height, width = ink.shape
    out, cx, cy = ink.copy(), width // 2, height // 2
    reach = max(2, int(min(height, width) * uniform(rng, 0.08, 0.15)))
    if chance(rng, 0.5):
        cv2.circle(out, (cx, cy), reach, 0.0, -1)
    else:
        cv2.rectangle(out, (cx - reach, cy - reach), (cx + reach, cy + reach), 0.0, -1)
    shade = uniform(rng, 0.4, 1.0)
    cv2.circle(out, (cx, cy), max(1, int(reach * 0.8)), shade, -1)
    letter = np.zeros_like(out)
    box = (cx - reach // 2, cy - reach // 2, cx + reach // 2, cy + reach // 2)
    draw_line(rng, letter, pick(rng, "iABRX@"), box)
    out *= 1 - letter
    return out


def print_symbol(rng: np.random.Generator, symbol: Symbol, px: float, plain: bool = False) -> Float:
    """Prints a symbol at a given size.

    Args:
        rng: Source of randomness.
        symbol: What to print.
        px: Pixels per cell across, any positive number.
        plain: Keep crisp square modules, without wear.

    Returns:
        [h, w] float32 ink coverage 0..1; the symbol fills the array edge to edge.
    """
    rows, columns = symbol.bits.shape
    across, down = _cell_sizes(symbol, px)
    style = "square"
    if not plain:
        style = weighted(rng, _styles(symbol))
    if style == "dots":
        ink = _dots(symbol, across, down, uniform(rng, 0.34, 0.56))
    else:
        cells = np.repeat(np.repeat(symbol.bits, down, 0), across, 1)
        ink = cells.astype(np.float32)
        if style == "rounded":
            ink = _round_corners(ink, across)
        elif style == "bleed":
            ink = _bleed(rng, ink, across)
    if not plain and chance(rng, 0.06):
        ink = _fade(rng, ink)
    if symbol.kind == "QRCode" and not plain and chance(rng, 0.1):
        ink = _logo(rng, ink)
    width = max(2, round(columns * px))
    height = max(2, round(rows * px * symbol.stretch))
    return np.asarray(resize(ink, width, height, nearest=True), np.float32)


def _styles(symbol: Symbol) -> list[tuple[str, float]]:
    if symbol.label == DATA_MATRIX:
        return [("square", 0.5), ("dots", 0.22), ("rounded", 0.08), ("bleed", 0.2)]
    if symbol.label == QR_CODE:
        return [("square", 0.62), ("dots", 0.06), ("rounded", 0.1), ("bleed", 0.22)]
    if symbol.label in (LINEAR, PDF417):
        return [("square", 0.7), ("bleed", 0.3)]
    return [("square", 0.68), ("dots", 0.05), ("rounded", 0.07), ("bleed", 0.2)]
