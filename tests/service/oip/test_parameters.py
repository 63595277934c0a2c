from __future__ import annotations

import math

import pytest

from service.errors import InvalidOptions
from service.oip.parameters import InferParameters, read_parameters
from service.types import DetectOptions, Priority, TileOptions
from tests.support.texts import NeverSplit


def test_without_parameters_the_defaults_apply() -> None:
    assert read_parameters({}) == InferParameters()
    assert read_parameters(dict.fromkeys(("threshold", "labels", "timeout"))) == InferParameters()


def test_numbers_may_be_text() -> None:
    as_text = {"threshold": "0.25", "max_detections": "7", "timeout": "1500000", "priority": "1"}
    as_numbers = {"threshold": 0.25, "max_detections": 7, "timeout": 1_500_000, "priority": 1}
    expected = InferParameters(
        DetectOptions(threshold=0.25, max_detections=7), Priority.HIGH, timeout_s=1.5
    )
    assert read_parameters(as_text) == read_parameters(as_numbers) == expected


def test_a_whole_number_may_be_written_with_a_decimal_point() -> None:
    assert read_parameters({"max_detections": 3.0}).options.max_detections == 3


def test_tiles_are_read() -> None:
    expected = DetectOptions(tiles=TileOptions((640, 480), 0.25))
    for overlap in (0.25, "0.25"):
        assert read_parameters({"tile": "640x480", "overlap": overlap}).options == expected
    assert read_parameters({"tile": "auto"}).options.tiles == TileOptions()
    with pytest.raises(InvalidOptions, match="tile is 7"):
        read_parameters({"tile": 7})
    for overlap in (float("nan"), "half", 0.6):
        with pytest.raises(InvalidOptions, match=r"overlap is .*; .* from 0 to 0\.5"):
            read_parameters({"tile": "auto", "overlap": overlap})


def test_the_message_says_the_range_of_each_number() -> None:
    with pytest.raises(InvalidOptions, match=r"max_detections is -1; it takes .* from 1 up"):
        read_parameters({"max_detections": -1})
    with pytest.raises(InvalidOptions, match=r"timeout is -1; it takes .* from 0 up"):
        read_parameters({"timeout": -1})


def test_labels_may_be_an_array() -> None:
    assert read_parameters({"labels": ["a", "b", "a"]}).options.labels == ("a", "b")
    assert read_parameters({"labels": []}).options.labels is None


def test_labels_are_split_by_the_core_which_knows_the_class_names() -> None:
    assert read_parameters({"labels": "a b, c,a b"}).options.labels == ("a b, c,a b",)


@pytest.mark.parametrize("as_list", [False, True])
def test_labels_that_are_too_long_are_refused_before_they_are_split(as_list: bool) -> None:
    labels = [NeverSplit("ab," * 3000)] * 2 if as_list else NeverSplit("ab," * 6000)
    with pytest.raises(InvalidOptions, match="labels has 18000 characters; at most 16384"):
        read_parameters({"labels": labels})
    assert read_parameters({"labels": "a" * 16_384}).options.labels == ("a" * 16_384,)


@pytest.mark.parametrize(
    ("level", "priority"), [(0, None), (1, Priority.HIGH), (2, Priority.NORMAL)]
)
def test_priority_one_is_high_and_zero_is_unset(level: int, priority: Priority | None) -> None:
    assert read_parameters({"priority": level}).priority is priority


def test_a_timeout_of_zero_is_none() -> None:
    assert read_parameters({"timeout": 0}).timeout_s is None


def test_unknown_parameters_are_ignored() -> None:
    values: dict[str, object] = {
        "sequence_id": 1,
        "custom": None,
        "x" * 1000: [{}],
        "threshold": 0.5,
    }
    assert read_parameters(values) == InferParameters(DetectOptions(threshold=0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", "high"),
        ("threshold", True),
        ("threshold", math.nan),
        ("threshold", 10**400),
        ("threshold", [0.5]),
        ("threshold", "0." + "0" * 100),
        ("max_detections", 1.5),
        ("max_detections", -1),
        ("max_detections", "1.5"),
        ("max_detections", True),
        ("max_detections", "9" * 400),
        ("labels", ""),
        ("labels", "a,,b"),
        ("labels", ["a", 1]),
        ("labels", ["a", ""]),
        ("labels", [["a"]]),
        ("threshold", "0_1"),
        ("threshold", "\u0660.\u0665"),
        ("threshold", "1e"),
        ("max_detections", "1_0"),
        ("max_detections", "\u0663"),
        ("timeout", "5_000"),
        ("timeout", -5),
        ("timeout", 0.5),
        ("priority", 3),
        ("priority", "x"),
        ("binary_data_output", 1),
    ],
)
def test_an_invalid_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidOptions, match=name):
        read_parameters({name: value})
