"""Names of splits in capitals, as exports of CVAT have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.data.formats.base import EntryFinder
from tests.model.data.layouts import (
    coco_document,
    opened,
    stems,
    voc_xml,
    write_image,
    write_text,
    write_voc,
)


@pytest.mark.parametrize(
    ("file", "image", "split"),
    [
        ("annotations/instances_Train.json", "images/Train/a.png", "train"),
        ("annotations/instances_Validation.json", "images/Validation/a.png", "val"),
        ("annotations/instances_train.json", "images/Train/a.png", "train"),
        ("annotations/instances_Train2017.json", "Train2017/a.png", "train"),
        ("Annotations/Instances_Test.json", "Images/Test/a.png", "test"),
        ("Train.json", "train/a.png", "train"),
        ("Valid/_annotations.coco.json", "Valid/a.png", "val"),
    ],
)
def test_coco_splits_in_capitals(tmp_path: Path, file: str, image: str, split: str) -> None:
    write_image(tmp_path / image)
    write_text(tmp_path / file, json.dumps(coco_document()))
    data = opened(tmp_path, split)
    assert data.folder / "a.png" == tmp_path / image


def test_yolo_splits_in_capitals(tmp_path: Path) -> None:
    for split in ("Train", "Validation"):
        write_image(tmp_path / "images" / split / f"{split}.png")
        write_text(tmp_path / "labels" / split / f"{split}.txt", "0 0.5 0.5 0.5 0.5")
    yaml = "Train: images/Train\nValidation: images/Validation\nNames: {0: cat}\n"
    write_text(tmp_path / "data.yaml", yaml)
    assert stems(opened(tmp_path)) == ["Train"]
    assert stems(opened(tmp_path, "val")) == ["Validation"]


@pytest.mark.parametrize("place", ["", "Annotations"])
def test_voc_folders_of_splits_in_capitals(tmp_path: Path, place: str) -> None:
    for split in ("Train", "Valid"):
        write_image(tmp_path / split / place / f"{split}.jpg")
        write_text(tmp_path / split / place / f"{split}.xml", voc_xml(f"{split}.jpg"))
    assert stems(opened(tmp_path)) == ["Train"]
    assert stems(opened(tmp_path, "val")) == ["Valid"]


def test_voc_lists_in_capitals(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, dict.fromkeys("abc", "dog"))
    for name, file in {"Train": "a", "Validation": "b"}.items():
        write_text(folder / "ImageSets" / "Main" / f"{name}.txt", f"{file}\n")
    assert stems(opened(folder)) == ["a"]
    assert stems(opened(folder, "val")) == ["b"]


def test_exact_spelling_comes_before_others(tmp_path: Path) -> None:
    find = EntryFinder().find
    (tmp_path / "TRAIN").mkdir()
    assert find(tmp_path, "train", "x") == tmp_path / "TRAIN" / "x"
    (tmp_path / "train").mkdir()
    assert find(tmp_path, "train", "x") == tmp_path / "train" / "x"
    assert find(tmp_path / "absent", "Train") == tmp_path / "absent" / "Train"
