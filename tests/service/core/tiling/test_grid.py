from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import VARIANTS
from service.core.tiling.grid import TileSize, auto_tile, count_tiles, tile_regions
from service.core.tiling.options import check_tiles, parse_tile, plan_tiles
from service.errors import InvalidOptions
from service.types import TileOptions

RULE = VARIANTS["lite-dino-efficientnet-lite0"]  # short side 384, long side at most 512
SIDES = st.integers(1, 4000)
TILES = st.builds(TileSize, st.integers(64, 2000), st.integers(64, 2000))
OVERLAPS = st.floats(0, 0.5)


@given(st.tuples(SIDES, SIDES), TILES, OVERLAPS)
@settings(max_examples=60, deadline=None)
def test_tiles_cover_every_pixel_with_one_size_and_the_overlap(
    size: tuple[int, int], tile: TileSize, overlap: float
) -> None:
    regions = tile_regions(size, tile, overlap)
    assert len(regions) == count_tiles(size, tile, overlap) == len(set(regions))
    assert len({region.size for region in regions}) == 1
    for axis, (length, side) in enumerate(((size[1], tile.width), (size[0], tile.height))):
        spans = sorted({(region[axis], region[axis + 2]) for region in regions})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= round(side * overlap) >= 0


def test_a_mask_of_the_tiles_has_no_hole() -> None:
    covered = np.zeros((701, 1003), np.bool_)
    for left, top, right, bottom in tile_regions(covered.shape, TileSize(160, 99), 0.3):
        covered[top:bottom, left:right] = True
    assert covered.all()


def test_an_image_of_3000_by_2000_has_30_tiles_of_640_by_480() -> None:
    assert count_tiles((2000, 3000), TileSize(640, 480), 0.2) == 30


@given(st.tuples(st.integers(1, 30000), st.integers(1, 30000)), OVERLAPS, st.integers(1, 128))
@settings(max_examples=60, deadline=None)
def test_auto_never_needs_too_many_tiles(
    size: tuple[int, int], overlap: float, max_tiles: int
) -> None:
    tile = auto_tile(size, RULE, overlap, max_tiles)
    if tile is not None:
        assert 1 <= count_tiles(size, tile, overlap) <= max_tiles


@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((384, 512), None),
        ((576, 768), None),  # reduced by 1.5
        ((30, 40), None),  # enlarged
        ((600, 800), (512, 384)),
        ((800, 600), (384, 512)),
        ((2000, 3000), (512, 384)),
    ],
)
def test_auto_takes_the_input_size_of_the_network(
    size: tuple[int, int], tile: tuple[int, int] | None
) -> None:
    assert auto_tile(size, RULE, 0.2, 64) == tile


def test_an_image_that_one_tile_covers_is_not_cut() -> None:
    assert plan_tiles(TileOptions((640, 480)), (480, 640), RULE, 64) == ()
    assert len(plan_tiles(TileOptions((640, 480)), (481, 640), RULE, 64)) == 2


def test_too_many_tiles_are_refused_with_the_limit() -> None:
    with pytest.raises(InvalidOptions, match=r"into 950 tiles; at most 64 .*max_tiles"):
        plan_tiles(TileOptions((100, 100)), (2000, 3000), RULE, 64)


@pytest.mark.parametrize(
    ("tile", "overlap", "options"),
    [
        (None, None, None),
        ("auto", None, TileOptions(None, 0.2)),
        ("640x480", 0.0, TileOptions((640, 480), 0.0)),
        ("64x8192", 0.5, TileOptions((64, 8192), 0.5)),
    ],
)
def test_options_are_read(tile: object, overlap: float | None, options: TileOptions | None) -> None:
    assert parse_tile(tile, overlap) == options


@pytest.mark.parametrize(
    "tile",
    ["", "AUTO", "640", "640x", "640*480", "63x480", "640x8193", "-640x480", "640x480x3",
     " 640x480", "640x480\n", "\u0666\u0664\u0660x480", 640, True, ["auto"], "9" * 5000 + "x480"],
)  # fmt: skip
def test_other_tiles_are_refused_with_the_range(tile: object) -> None:
    with pytest.raises(InvalidOptions, match=r"WIDTHxHEIGHT .* each from 64 to 8192") as refusal:
        parse_tile(tile, None)
    assert len(refusal.value.detail) < 300


@pytest.mark.parametrize("overlap", [-0.01, 0.51, float("nan"), float("inf")])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(InvalidOptions, match=r"from 0 to 0\.5"):
        parse_tile("auto", overlap)


def test_overlap_without_tile_is_refused() -> None:
    with pytest.raises(InvalidOptions, match="tile"):
        parse_tile(None, 0.2)


def test_tiles_are_refused_where_they_are_not_offered() -> None:
    tiles = TileOptions()
    check_tiles(tiles, 64, explains=False)
    check_tiles(None, 0, explains=True)
    with pytest.raises(InvalidOptions, match="--max-tiles"):
        check_tiles(tiles, 0, explains=False)
    with pytest.raises(InvalidOptions, match="explain"):
        check_tiles(tiles, 64, explains=True)
