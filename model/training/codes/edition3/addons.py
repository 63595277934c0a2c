"""Retail codes with the two or five digits that magazines and books have next to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.training.codes.common import chance, integer
from model.training.codes.symbols import (
    LINEAR,
    Symbol,
    random_digits,
    random_symbol,
    write_symbol,
)

_KINDS = ("EAN13", "UPCA", "UPCE")
_LEAST_ROWS = 24  # of a code whose add-on has digits above it


def symbol_with_addon(rng: np.random.Generator) -> Symbol:
    """Draws a retail code with an add-on, which belongs to no class and is not annotated."""
    symbol = random_symbol(rng, LINEAR)
    while symbol.kind not in _KINDS:
        symbol = random_symbol(rng, LINEAR)
    kind = "EAN5" if chance(rng, 0.5) else "EAN2"
    payload = random_digits(rng, int(kind[-1]))
    bits = write_symbol(payload, kind)
    rows = symbol.bits.shape[0] - symbol.guard
    if rows >= _LEAST_ROWS:
        rows -= integer(rng, 7, 10)
    bars = np.repeat(bits[bits.shape[0] // 2][None], rows, axis=0)
    return replace(symbol, addon=Symbol(bars, LINEAR, payload, payload, kind))
