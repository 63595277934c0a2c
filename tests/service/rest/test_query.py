from __future__ import annotations

import pytest

from service.errors import InvalidOptions
from service.rest.query import parse_query
from service.types import DetectOptions, TileOptions
from tests.support.texts import NeverSplit


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


def test_labels_that_are_too_long_are_refused_before_they_are_split() -> None:
    for lengths in ([16_385], [8000, 8385], [1] * 16_385):
        given = [("labels", NeverSplit("a" * length)) for length in lengths]
        with pytest.raises(InvalidOptions, match="labels has 16385 characters; at most 16384"):
            parse_query(given)
    assert parse_query([("labels", "a" * 16_384)]).options.labels == ("a" * 16_384,)
