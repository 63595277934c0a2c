"""Colours of paper and ink."""

from __future__ import annotations

import numpy as np

from model.training.codes.common import Float, chance, uniform, weighted

_LEAST_CONTRAST = 45.0
_MIDDLE = 115.0


def _light(rng: np.random.Generator) -> Float:
    kind = weighted(rng, [("white", 0.6), ("tint", 0.2), ("grey", 0.12), ("strong", 0.08)])
    if kind == "white":
        return np.full(3, uniform(rng, 225, 255), np.float32)
    if kind == "grey":
        return np.full(3, uniform(rng, 130, 225), np.float32)
    low = 195 if kind == "tint" else 110
    return rng.uniform(low, 255, 3).astype(np.float32)


def _dark(rng: np.random.Generator) -> Float:
    kind = weighted(rng, [("black", 0.72), ("blue", 0.07), ("brown", 0.05), ("any", 0.16)])
    if kind == "black":
        return np.full(3, uniform(rng, 0, 50), np.float32)
    if kind == "blue":
        return np.array([uniform(rng, 0, 40), uniform(rng, 10, 90), uniform(rng, 80, 180)], "f")
    if kind == "brown":
        return np.array([uniform(rng, 60, 120), uniform(rng, 30, 70), uniform(rng, 0, 40)], "f")
    return rng.uniform(0, 120, 3).astype(np.float32)


def colours(rng: np.random.Generator, crisp: bool) -> tuple[Float, Float]:
    """Draws the (paper, ink) colours of a label.

    Args:
        rng: Source of randomness.
        crisp: Mostly pure black on white.

    Returns:
        Two [3] float32 RGB arrays 0..255; ink is darker except for inverted prints.
    """
    if crisp and chance(rng, 0.8):
        paper, ink = np.full(3, 255, np.float32), np.zeros(3, np.float32)
    else:
        paper, ink = _light(rng), _dark(rng)
    if paper.mean() - ink.mean() < _LEAST_CONTRAST:
        ink = ink * 0.3
    if not crisp and chance(rng, 0.12):
        mix = uniform(rng, 0.3, 0.75)
        ink = ink + (paper - ink) * mix
    if chance(rng, 0.09):
        paper, ink = ink, paper
    return paper, ink


def ink_on(rng: np.random.Generator, under: float) -> Float:
    """Draws an ink colour [3] visible on a surface of brightness `under` (0..255)."""
    return _dark(rng) if under > _MIDDLE else _light(rng)
