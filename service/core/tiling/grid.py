"""The tiles of an image: overlapping regions of equal size that cover it.

Every tile of an image has the same size, so that tiles share batches. Neighbours overlap by at
least the given share of a tile: an object that is smaller than the overlap lies whole in one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from model.geometry import resized_size
from model.images.decode import InputRule

MIN_SIDE, MAX_SIDE = 64, 8192  # of a tile, pixels
MAX_OVERLAP = 0.5
# Up to this reduction `auto` leaves an image whole: an object that the network just finds in an
# image of its own size is then only slightly too small.
_AUTO_REDUCTION = 1.5
_GROWTH = 1.05  # of the tiles of `auto`, in each step until they are few enough


class Region(NamedTuple):
    """A part of an image, pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left


class TileSize(NamedTuple):
    """The size of a tile, pixels of the image."""

    width: int
    height: int


def tile_starts(length: int, tile: int, overlap: float) -> Sequence[int]:
    """Where the tiles along one side of an image start.

    Args:
        length: of the side, pixels.
        tile: length of a tile, pixels.
        overlap: the least overlap of neighbours, as a share of a tile: 0..0.5.

    Returns:
        Rising starts, evenly spaced: the first is 0, and the last tile ends with the side.
    """
    count = _count_along(length, tile, overlap)
    if count == 1:
        return (0,)
    spread = length - tile
    return [(2 * index * spread + count - 1) // (2 * (count - 1)) for index in range(count)]


def count_tiles(size: tuple[int, int], tile: TileSize, overlap: float) -> int:
    """The number of tiles of an image of `size` (height, width)."""
    height, width = size
    across = _count_along(width, tile.width, overlap)
    return across * _count_along(height, tile.height, overlap)


def tile_regions(size: tuple[int, int], tile: TileSize, overlap: float) -> tuple[Region, ...]:
    """The tiles of an image, row by row.

    Args:
        size: (height, width) of the image.
        tile: a side that is longer than the image's is shortened to it.
        overlap: the least overlap of neighbours, as a share of a tile: 0..0.5.

    Returns:
        Regions of one size, which cover the image.
    """
    height, width = size
    wide, high = min(tile.width, width), min(tile.height, height)
    return tuple(
        Region(left, top, left + wide, top + high)
        for top in tile_starts(height, high, overlap)
        for left in tile_starts(width, wide, overlap)
    )


def auto_tile(
    size: tuple[int, int], rule: InputRule, overlap: float, max_tiles: int
) -> TileSize | None:
    """The tile size for an image and a model.

    Args:
        size: (height, width) of the image.
        rule: how the model resizes images.
        overlap: the least overlap of neighbours, as a share of a tile: 0..0.5.
        max_tiles: at least 1; tiles become larger, and are reduced, so that no more are needed.

    Returns:
        The network's own input size in the image's orientation, so that tiles keep their
        resolution; or None if the network sees the whole image nearly at its own resolution.
    """
    height, width = size
    resized = resized_size(height, width, rule.shortest_side, rule.longest_side)
    if max(height / resized[0], width / resized[1]) <= _AUTO_REDUCTION:
        return None
    long, short = float(rule.longest_side), float(rule.shortest_side)
    while True:
        sides = round(long), round(short)
        tile = TileSize(*(sides if width >= height else sides[::-1]))
        if count_tiles(size, tile, overlap) <= max_tiles:
            return tile
        long, short = long * _GROWTH, short * _GROWTH


def _count_along(length: int, tile: int, overlap: float) -> int:
    if length <= tile:
        return 1
    step = max(1, tile - round(tile * overlap))
    return -(-(length - tile) // step) + 1
