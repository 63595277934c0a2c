"""Categories of COCO data that only group others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.data.annotations import GroundTruth
from model.data.data_sets import open_coco
from model.data.errors import DataError
from tests.model.data.layouts import coco_document, opened, write_image, write_text

_ROOT = {"id": 0, "name": "animals", "supercategory": "none"}


def _category(number: int, name: str, group: str | None = "animals") -> dict[str, Any]:
    return {"id": number, "name": name, "supercategory": group}


def _write(folder: Path, categories: list[dict[str, Any]], *annotated: int) -> Path:
    """A set in Roboflow's layout, whose boxes have these category ids, train and val alike."""
    boxes = [
        {"id": n, "image_id": 1, "category_id": category, "bbox": [n, 2, 30, 40]}
        for n, category in enumerate(annotated, 1)
    ]
    document = coco_document() | {"annotations": boxes, "categories": categories}
    for split in ("train", "valid"):
        write_image(folder / split / "a.png")
        write_text(folder / split / "_annotations.coco.json", json.dumps(document))
    return folder


@pytest.mark.parametrize("root", ["cat", "animals"], ids=["name of a class", "own name"])
def test_root_category_is_left_out_with_a_warning(tmp_path: Path, root: str) -> None:
    categories = [_ROOT | {"name": root}, _category(1, "cat", root), _category(2, "dog", root)]
    folder = _write(tmp_path, categories, 1, 2)
    file = folder / "valid" / "_annotations.coco.json"
    for data in (opened(folder), opened(folder, "val"), open_coco(file, folder / "valid")):
        assert dict(data.truth.categories) == {1: "cat", 2: "dog"}
        report = data.findings.report("")
        assert (
            f"only group others, without a box (left out): 1, the first: id 0: '{root}'" in report
        )
    assert dict(GroundTruth.read(file).categories) == {1: "cat", 2: "dog"}


def test_validation_without_a_class_keeps_it_but_not_the_root(tmp_path: Path) -> None:
    folder = _write(tmp_path, [_ROOT, _category(1, "cat"), _category(2, "dog")], 1)
    assert dict(opened(folder, "val").truth.categories) == {1: "cat", 2: "dog"}


@pytest.mark.parametrize(
    ("categories", "annotated"),
    [
        ([_ROOT, _category(1, "cat")], (0, 1)),
        ([_ROOT | {"name": "none"}, _category(1, "cat", "none")], (1,)),
        ([_category(0, "person", "person"), _category(1, "child", "person")], (1,)),
        ([_ROOT | {"supercategory": None}, _category(1, "cat", None)], (1,)),
    ],
    ids=["annotated", "named none", "COCO's person", "no group"],
)
def test_other_categories_stay(
    tmp_path: Path, categories: list[dict[str, Any]], annotated: tuple[int, ...]
) -> None:
    data = opened(_write(tmp_path, categories, *annotated))
    assert list(data.truth.categories) == [0, 1]
    assert "group others" not in data.findings.report("")


def test_annotated_root_with_the_name_of_a_class_is_an_error(tmp_path: Path) -> None:
    folder = _write(tmp_path, [_ROOT, _category(1, "animals")], 0, 1)
    with pytest.raises(DataError, match="categories with the name of another one"):
        opened(folder)


def test_malformed_categories_are_reported_as_before(tmp_path: Path) -> None:
    categories: list[Any] = [_ROOT | {"id": []}, 3, {"supercategory": ["a"]}, _category(1, "cat")]
    with pytest.raises(DataError, match="categories that are not JSON objects"):
        opened(_write(tmp_path, categories, 1))
