from __future__ import annotations

import pytest

from service.errors import InvalidOptions
from service.rest.query import parse_query
from service.types import DetectOptions, TileOptions


def test_tiles_are_read() -> None:
    assert parse_query([("tile", "auto")]).options == DetectOptions(tiles=TileOptions(None, 0.2))
    given = [("tile", "640x480"), ("overlap", "0.3")]
    assert parse_query(given).options.tiles == TileOptions((640, 480), 0.3)
    assert parse_query([("tile", "640x480"), ("overlap", 0)]).options.tiles == TileOptions(
        (640, 480), 0.0
    )


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([("tile", "big")], "tile is 'big'; it takes auto, or WIDTHxHEIGHT"),
        ([("tile", "auto"), ("tile", "auto")], "tile is given 2 times"),
        ([("tile", "auto"), ("overlap", "much")], "overlap is 'much'; it takes a number from 0"),
        ([("tile", "auto"), ("overlap", "0.6")], "overlap is 0.6; it takes a number from 0 to 0.5"),
        ([("overlap", "0.2")], "overlap is an option of tile only"),
    ],
)
def test_wrong_tiles_are_refused(parameters: list[tuple[str, object]], words: str) -> None:
    with pytest.raises(InvalidOptions, match=words):
        parse_query(parameters)
