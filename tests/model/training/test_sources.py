"""Sources of training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.annotations import DataError
from model.labels import COCO_LABELS
from model.training.sources import AnnotatedImage, CacheSource, CocoSource, LiveSource
from tests.model.training.tiny import LABELS, write_cache


def test_line_that_a_killed_writer_left_unfinished_is_skipped(tmp_path: Path) -> None:
    index = write_cache(tmp_path, 3) / "scenes.jsonl"
    text = index.read_text(encoding="utf-8")
    index.write_text(text[:-30], encoding="utf-8")
    assert len(CacheSource(tmp_path, LABELS)) == 2
    index.write_text(text[:60] + "\n" + text, encoding="utf-8")
    assert len(CacheSource(tmp_path, LABELS)) == 3


def test_growing_cache_is_seen_at_the_next_refresh_and_can_be_limited(tmp_path: Path) -> None:
    source = CacheSource(write_cache(tmp_path, 2), LABELS)
    write_cache(tmp_path, 4)
    assert len(source) == 2
    source.refresh(1)
    assert len(source) == 4
    source.refresh(1, 2)
    assert len(source) == 2


def test_cache_labels_may_be_names(tmp_path: Path) -> None:
    index = write_cache(tmp_path, 1) / "scenes.jsonl"
    index.write_text(index.read_text().replace('"labels": [0]', '"labels": ["blue"]'))
    assert CacheSource(tmp_path, LABELS).load(0).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"boxes": []}, "0 boxes but 1 labels"),
        ({"labels": ["pink"]}, "not a scene"),
        ({"labels": [2]}, "label 2 is none of 2 classes"),
        ({"boxes": [[1, 2, float("nan"), 4]]}, "a box is not finite"),
    ],
)
def test_scene_that_contradicts_itself_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    index = write_cache(tmp_path, 1) / "scenes.jsonl"
    scene = {**json.loads(index.read_text()), **change}
    index.write_text(json.dumps(scene) + "\n")
    with pytest.raises(DataError, match=rf"scenes\.jsonl:1: .*{problem}"):
        CacheSource(tmp_path, LABELS)


def test_absent_cache_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scenes\.jsonl"):
        CacheSource(tmp_path, LABELS)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    source = CacheSource(write_cache(tmp_path, 1), LABELS)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png"):
        source.load(0)


def _coco(folder: Path, categories: list[dict[str, Any]], **annotation: Any) -> Path:
    write_cache(folder, 1)
    document = {
        "images": [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "0.png"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40], **annotation},
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 40], "iscrowd": 1},
        ],
        "categories": categories,
    }
    file = folder / "annotations.json"
    file.write_text(json.dumps(document))
    return file


_OWN = [{"id": 3, "name": "blue"}, {"id": 1, "name": "red"}]


def test_coco_boxes_become_corners_and_crowds_are_left_out(tmp_path: Path) -> None:
    source = CocoSource(_coco(tmp_path, _OWN), tmp_path)
    image = source.load(0)
    assert source.label_names == ("red", "blue")
    assert image.boxes.tolist() == [[10, 20, 40, 60]]
    assert image.labels.tolist() == [1]
    assert len(source) == 2
    assert source.load(1).boxes.shape == (0, 4)


def test_coco_ids_are_kept_where_the_categories_are_the_known_ones(tmp_path: Path) -> None:
    source = CocoSource(_coco(tmp_path, _OWN), tmp_path, ("N/A", "red", "N/A", "blue"))
    assert source.load(0).labels.tolist() == [3]
    assert source.category_ids == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "known", [("N/A", "blue", "N/A", "red"), ("N/A", "red", "green", "blue"), COCO_LABELS]
)
def test_classes_are_those_of_the_data_where_it_lacks_some_of_the_known_ones(
    tmp_path: Path, known: tuple[str, ...]
) -> None:
    source = CocoSource(_coco(tmp_path, _OWN), tmp_path, known)
    assert source.load(0).labels.tolist() == [1]
    assert (source.label_names, source.category_ids) == (("red", "blue"), (1, 3))


def test_boxes_are_clipped_to_the_image_and_those_outside_left_out(tmp_path: Path) -> None:
    file = _coco(tmp_path, _OWN, bbox=[80, -10, 40, 40])
    document = json.loads(file.read_text())
    document["annotations"].append({"image_id": 7, "category_id": 1, "bbox": [200, 5, 9, 9]})
    file.write_text(json.dumps(document))
    image = CocoSource(file, tmp_path).load(0)
    assert image.boxes.tolist() == [[80, 0, 96, 30]]
    assert image.labels.tolist() == [1]


def test_data_without_a_box_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no box to learn from"):
        CocoSource(_coco(tmp_path, _OWN, iscrowd=1), tmp_path)


def test_unknown_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="category_id no category has"):
        CocoSource(_coco(tmp_path, _OWN, category_id=9), tmp_path)


def test_live_source_draws_other_images_each_epoch() -> None:
    drawn: list[int] = []

    def draw(number: int) -> AnnotatedImage:
        drawn.append(number)
        empty = np.zeros((0, 4), np.float32)
        return AnnotatedImage(np.zeros((4, 4, 3), np.uint8), empty, np.zeros(0, np.int64))

    source = LiveSource(draw, 10)
    source.load(3)
    source.refresh(2)
    source.load(3)
    assert drawn == [3, 23]
