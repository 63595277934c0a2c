"""TIFF and PNG files that are put together here: depths that the other writers lack."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tests.support.corpus.scene import (
    HEIGHT,
    ROUNDED,
    WIDTH,
    CorpusFile,
    alpha,
    colours,
    grey,
    integers,
    shown,
)
from tests.support.image_pieces import png_file, tiff_file

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_ADAM7_LAST = (0, 1, 1, 2)


def packed_rows(samples: npt.NDArray[np.generic], bits: int, order: str = ">") -> list[bytes]:
    """The bytes of each row; samples of a few bits are packed, high bits first."""
    rows = samples.reshape(len(samples), -1)
    if bits in {8, 16, 32}:
        return [row.tobytes() for row in rows.astype(f"{order}u{bits // 8}")]
    if bits == 24:
        wide = rows.astype(f"{order}u4").view(np.uint8).reshape(*rows.shape, 4)
        three = wide[..., :3] if order == "<" else wide[..., 1:]
        return [row.tobytes() for row in three]
    flags = (rows[..., np.newaxis].astype(np.uint32) >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(flags.reshape(len(rows), -1).astype(np.uint8), axis=-1)
    return [row.tobytes() for row in packed]


def packed_tiff(
    samples: npt.NDArray[np.generic], bits: int, photometric: int, order: str, compression: int
) -> bytes:
    """A TIFF of one strip per three rows."""
    count = 1 if samples.ndim == 2 else samples.shape[-1]
    rows = packed_rows(samples, bits, order)
    strips = [b"".join(rows[top : top + 3]) for top in range(0, HEIGHT, 3)]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    sizes = [len(strip) for strip in strips]
    offsets = [16 + sum(sizes[:number]) for number in range(len(strips))]
    entries = {
        256: (3, [WIDTH]),
        257: (3, [HEIGHT]),
        258: (3, [bits] * count),
        259: (3, [compression]),
        262: (3, [photometric]),
        273: (4, offsets),
        277: (3, [count]),
        278: (3, [3]),
        279: (4, sizes),
    }
    return tiff_file(entries, b"".join(strips), order=order)


def own_files() -> Iterator[CorpusFile]:
    """Every depth of TIFF and of PNG."""
    for bits in (1, 2, 4, 8, 10, 12, 14, 16, 24, 32):
        for order in "<>":
            for compression in (1, 8):
                black, rgb = integers(grey(), bits), integers(colours(), bits)
                yield CorpusFile(
                    f"TIFF, grey of {bits} bits, {order}, compression {compression}",
                    packed_tiff(black, bits, 1, order, compression),
                    shown(black, bits),
                    ROUNDED,
                )
                yield CorpusFile(
                    f"TIFF, white is zero, {bits} bits, {order}, compression {compression}",
                    packed_tiff((1 << bits) - 1 - black, bits, 0, order, compression),
                    shown(black, bits),
                    ROUNDED,
                )
                yield CorpusFile(
                    f"TIFF, RGB of {bits} bits, {order}, compression {compression}",
                    packed_tiff(rgb, bits, 2, order, compression),
                    shown(rgb, bits),
                    ROUNDED,
                )
    yield from _png_files()


def _png_files() -> Iterator[CorpusFile]:
    kinds = {0: (1, 2, 4, 8, 16), 2: (8, 16), 4: (8, 16), 6: (8, 16)}
    layers = {0: [grey()], 2: [colours()], 4: [grey(), alpha()], 6: [colours(), alpha()]}
    for colour, depths in kinds.items():
        for bits in depths:
            parts = [integers(layer, bits) for layer in layers[colour]]
            opaque = parts[1] / ((1 << bits) - 1) if len(parts) > 1 else None
            samples = np.dstack(parts)
            for interlace in (0, 1):
                yield CorpusFile(
                    f"PNG, colour type {colour}, {bits} bits, interlace {interlace}",
                    png_file(
                        (WIDTH, HEIGHT),
                        bits,
                        colour,
                        _png_rows(samples, bits, interlace),
                        interlace=interlace,
                    ),
                    shown(parts[0], bits, opaque),
                    ROUNDED,
                )


def _png_rows(samples: npt.NDArray[np.generic], bits: int, interlace: int) -> bytes:
    passes = [(0, 0, 1, 1)] if not interlace else [*_ADAM7, _ADAM7_LAST]
    rows = []
    for left, top, across, down in passes:
        part = samples[top::down, left::across]
        if part.size:
            rows += [b"\x00" + row for row in packed_rows(part, bits)]
    return b"".join(rows)
