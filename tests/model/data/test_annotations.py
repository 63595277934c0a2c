"""COCO-format annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.data.annotations import DataError, GroundTruth

DOCUMENT: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40]},
        {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "blue"}, {"id": 1, "name": "red"}],
}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": 3}'])
def test_annotations_in_another_form_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"set\.json"):
        GroundTruth.read(path)


def test_boxes_belong_to_their_images() -> None:
    truth = GroundTruth.from_coco(DOCUMENT)
    first, second = truth.images
    assert [box.xyxy for box in first.boxes] == [(10, 20, 40, 60), (1, 2, 4, 6)]
    assert [(box.area, box.crowd) for box in first.boxes] == [(1200, False), (5, True)]
    assert second.boxes == ()
    assert list(truth.categories.items()) == [(1, "red"), (3, "blue")]
    assert truth.counts() == {3: 1}


def test_written_document_is_read_as_the_same() -> None:
    truth = GroundTruth.from_coco(DOCUMENT)
    assert GroundTruth.from_coco(json.loads(json.dumps(truth.to_coco()))) == truth


def test_limit_keeps_the_first_images() -> None:
    assert [image.image_id for image in GroundTruth.from_coco(DOCUMENT, limit=1).images] == [7]


def test_document_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps({**DOCUMENT, "images": []}))
    with pytest.raises(DataError, match=r"set\.json names no image"):
        GroundTruth.read(tmp_path / "set.json")


def test_categories_are_found_by_name() -> None:
    truth = GroundTruth.from_coco(DOCUMENT)
    assert truth.category_ids(("green", "blue", "red")) == {1: 3, 2: 1}
    with pytest.raises(DataError, match="blue"):
        truth.category_ids(("red",))
