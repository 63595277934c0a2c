"""The options `tile` and `overlap` of a request, and the tiles that follow for an image."""

from __future__ import annotations

import math
import re

from model.images.decode import InputRule
from service.core.tiling.grid import (
    MAX_OVERLAP,
    MAX_SIDE,
    MIN_SIDE,
    Region,
    TileSize,
    auto_tile,
    count_tiles,
    tile_regions,
)
from service.errors import InvalidOptions, short_repr
from service.types import DEFAULT_OVERLAP, TileOptions

AUTO = "auto"
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})", re.ASCII)
_EXPLAINED = "format=explain looks at the whole image; it takes no tile"


def parse_tile(tile: object, overlap: float | None) -> TileOptions | None:
    """Reads the two options.

    Args:
        tile: WIDTHxHEIGHT or "auto"; None: not given.
        overlap: the value of the option; None: not given.

    Returns:
        The options; None for an image that is not cut into tiles.

    Raises:
        InvalidOptions: for an invalid value; the message names the option and its range.
    """
    if tile is None:
        if overlap is not None:
            raise InvalidOptions("overlap is an option of tile only; give tile=auto, too")
        return None
    share = DEFAULT_OVERLAP if overlap is None else overlap
    if math.isnan(share) or not 0 <= share <= MAX_OVERLAP:
        raise InvalidOptions(overlap_error(share))
    if tile == AUTO:
        return TileOptions(None, share)
    found = _SIZE.fullmatch(tile) if isinstance(tile, str) else None
    sides = [int(side) for side in found.groups()] if found else []
    if not sides or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise InvalidOptions(
            f"tile is {short_repr(tile)}; it takes auto, or WIDTHxHEIGHT in pixels such as "
            f"640x480, each from {MIN_SIDE} to {MAX_SIDE}"
        )
    return TileOptions((sides[0], sides[1]), share)


def overlap_error(value: object) -> str:
    """What is wrong with a value of `overlap`."""
    return f"overlap is {short_repr(value)}; it takes a number from 0 to {MAX_OVERLAP:g}"


def check_tiles(tiles: TileOptions | None, max_tiles: int, *, explains: bool) -> None:
    """Refuses tiles where they are not offered.

    Raises:
        InvalidOptions: if tiles are turned off, or with a detection to explain.
    """
    if tiles is None:
        return
    if not max_tiles:
        raise InvalidOptions("tile is turned off here; it needs `serve --max-tiles`")
    if explains:
        raise InvalidOptions(_EXPLAINED)


def plan_tiles(
    options: TileOptions, size: tuple[int, int], rule: InputRule, max_tiles: int
) -> tuple[Region, ...]:
    """The tiles of an image.

    Args:
        options: of the request.
        size: (height, width) of the image.
        rule: how the model resizes images.
        max_tiles: the limit of the service.

    Returns:
        The tiles; none if the whole image suffices, because one tile would cover it or, with
        `auto`, because the network sees it nearly at its own resolution.

    Raises:
        InvalidOptions: for more than `max_tiles`.
    """
    if options.size is None:
        tile = auto_tile(size, rule, options.overlap, max_tiles)
        if tile is None:
            return ()
    else:
        tile = TileSize(*options.size)
    count = count_tiles(size, tile, options.overlap)
    if count > max_tiles:
        raise InvalidOptions(
            f"tile={tile.width}x{tile.height} with overlap={options.overlap:g} cuts the image of "
            f"{size[1]} x {size[0]} pixels into {count} tiles; at most {max_tiles} are accepted "
            f"(max_tiles): use larger tiles or tile={AUTO}"
        )
    return tile_regions(size, tile, options.overlap) if count > 1 else ()
