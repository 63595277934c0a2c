from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from model.detections import Detections
from service.core.selection import resolve_options, split_labels
from service.errors import InvalidOptions
from service.types import DetectOptions
from tests.support.fake_device import FAKE_MODEL

FOUND = Detections(
    scores=np.array([0.9, 0.8, 0.5, 0.2], dtype=np.float32),
    labels=np.array([0, 4, 0, 1]),
    boxes_xyxy=np.arange(16, dtype=np.float32).reshape(4, 4),
)


def _kept(**options: object) -> list[float]:
    selection = resolve_options(DetectOptions(**options), FAKE_MODEL)  # type: ignore[arg-type]
    return [round(float(score), 3) for score in selection.apply(FOUND).scores]


def test_the_models_own_threshold_is_the_default() -> None:
    assert FAKE_MODEL.score_threshold == 0.5
    assert _kept() == [0.9, 0.8, 0.5]


@pytest.mark.parametrize(
    ("threshold", "count"), [(0.0, 4), (0.2, 4), (0.8, 2), (0.81, 1), (1.0, 0)]
)
def test_a_score_equal_to_the_threshold_is_kept(threshold: float, count: int) -> None:
    assert len(_kept(threshold=threshold)) == count


def test_the_best_are_kept() -> None:
    assert _kept(threshold=0.0, max_detections=2) == [0.9, 0.8]


def test_labels_are_counted_after_filtering() -> None:
    assert _kept(threshold=0.0, labels=("qr_code", "data_matrix"), max_detections=3) == [
        0.9,
        0.5,
        0.2,
    ]


def test_no_label_keeps_nothing() -> None:
    assert _kept(threshold=0.0, labels=()) == []


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(InvalidOptions, match="threshold"):
        resolve_options(DetectOptions(threshold=threshold), FAKE_MODEL)


@pytest.mark.parametrize("count", [0, -1, FAKE_MODEL.config.max_detections + 1])
def test_a_count_that_the_model_cannot_give_is_refused(count: int) -> None:
    with pytest.raises(InvalidOptions, match="max_detections"):
        resolve_options(DetectOptions(max_detections=count), FAKE_MODEL)


def test_the_error_for_an_unknown_label_names_the_known_ones() -> None:
    with pytest.raises(InvalidOptions) as caught:
        resolve_options(DetectOptions(labels=("qr_code", "qrcode")), FAKE_MODEL)
    assert "'qrcode'" in caught.value.detail
    assert "did you mean 'qr_code'" in caught.value.detail
    assert all(name in caught.value.detail for name in FAKE_MODEL.labels)


def test_the_error_for_a_very_long_label_is_short() -> None:
    with pytest.raises(InvalidOptions) as caught:
        resolve_options(DetectOptions(labels=("qr_cod" + "e" * 1_000_000,)), FAKE_MODEL)
    assert len(caught.value.detail) < 500


def test_a_gap_in_the_class_ids_is_no_label() -> None:
    with pytest.raises(InvalidOptions):
        resolve_options(DetectOptions(labels=("N/A",)), FAKE_MODEL)


KNOWN = ("salt", "salt, pepper", "pepper", "a,b", "a", "b,c", "oil")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("oil", ["oil"]),
        ("oil, salt", ["oil", "salt"]),
        ("salt, pepper", ["salt, pepper"]),
        ("pepper, salt", ["pepper", "salt"]),
        ("oil,salt, pepper,a", ["oil", "salt, pepper", "a"]),
        ("a,b,c", ["a,b", "c"]),
        ("cat, salt, pepper", ["cat", "salt, pepper"]),
        ("", [""]),
        ("oil,,a", ["oil", "", "a"]),
    ],
)
def test_labels_are_split_at_commas_but_not_within_a_known_name(
    text: str, names: list[str]
) -> None:
    assert split_labels(text, KNOWN) == names


def test_a_class_with_commas_can_be_selected() -> None:
    model = dataclasses.replace(FAKE_MODEL, labels=KNOWN)
    for labels in (("a,b", "salt"), ("a,b,salt",), ("salt", "a,b"), ("salt, a,b",)):
        assert resolve_options(DetectOptions(labels=labels), model).class_ids == frozenset({0, 3})
    with pytest.raises(InvalidOptions, match="'cat'"):
        resolve_options(DetectOptions(labels=("salt, pepper,cat",)), model)


def test_the_text_of_labels_has_a_maximum_length() -> None:
    names = ("qr_code," * 1000, "qr_code," * 2000)
    with pytest.raises(InvalidOptions, match="labels has 24000 characters; at most 16384"):
        _kept(labels=names)


def test_labels_of_the_other_unicode_form_are_known() -> None:
    model = dataclasses.replace(FAKE_MODEL, labels=("caf\u00e9", *FAKE_MODEL.labels[1:]))
    options = DetectOptions(labels=("cafe\u0301",))
    assert resolve_options(options, model).class_ids == frozenset({0})
