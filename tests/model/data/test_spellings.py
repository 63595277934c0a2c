"""Encodings of text files, and names that are written in two forms of Unicode."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from model.data.data_sets import open_data_set
from model.data.errors import DataError
from service.cli.data_set_ids import match_files
from service.cli.inputs import ImageFile

_YOLO = "train: images\nnames: [cat, Größe]\n"
_LABELS = "1 0.5 0.5 0.25 0.5\n"


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), "red").save(path)
    return path


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_yolo_files_may_be_utf_16_with_its_mark(tmp_path: Path, encoding: str) -> None:
    _image(tmp_path / "images" / "a.png")
    for name, text in {"data.yaml": _YOLO, "labels/a.txt": _LABELS}.items():
        _write(tmp_path / name, "").write_bytes(f"\ufeff{text}".encode(encoding))
    data = open_data_set(tmp_path)
    assert data is not None
    assert dict(data.truth.categories) == {0: "cat", 1: "Größe"}
    assert [box.category_id for image in data.truth.images for box in image.boxes] == [1]


_NFC, _NFD = (unicodedata.normalize(form, "Größe 한글 café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("on_disk", "written"), [(_NFC, _NFD), (_NFD, _NFC)], ids=["NFD", "NFC"])
@pytest.mark.parametrize("layout", ["COCO", "YOLO", "VOC"])
def test_names_in_another_unicode_form_are_found(
    tmp_path: Path, layout: str, on_disk: str, written: str
) -> None:
    entry = {"images": [{"id": 1, "file_name": f"{written}.png"}]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9]}
    document = {**entry, "annotations": [box], "categories": [{"id": 1, "name": written}]}
    if layout == "COCO":
        _image(tmp_path / "train" / f"{on_disk}.png")
        _write(tmp_path / "train.json", json.dumps(document))
    elif layout == "YOLO":
        _image(tmp_path / f"{on_disk}.png")
        _write(tmp_path / f"{on_disk}.txt", "0 0.5 0.5 0.5 0.5")
        _write(tmp_path / "train.txt", f"{written}.png\n")
        _write(tmp_path / "data.yaml", f"train: train.txt\nnames: ['{written}']\n")
    else:
        _image(tmp_path / "JPEGImages" / f"{on_disk}.png")
        corners = "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
        _write(
            tmp_path / "Annotations" / "a.xml",
            f"<annotation><filename>{written}.png</filename><object><name>{written}</name>"
            f"<bndbox>{corners}</bndbox></object></annotation>",
        )
    data = open_data_set(tmp_path)
    assert data is not None
    assert list(data.truth.categories.values()) == [_NFC]
    assert [len(image.boxes) for image in data.truth.images] == [1]


def test_class_name_in_two_unicode_forms_is_there_twice(tmp_path: Path) -> None:
    _image(tmp_path / "images" / "a.png")
    _write(tmp_path / "labels" / "a.txt", _LABELS)
    _write(tmp_path / "data.yaml", f"train: images\nnames: ['{_NFC}', '{_NFD}']\n")
    with pytest.raises(DataError, match="categories with the name of another one: 1"):
        open_data_set(tmp_path)


@pytest.mark.parametrize(("on_disk", "written"), [(_NFC, _NFD), (_NFD, _NFC)], ids=["NFD", "NFC"])
def test_detected_files_are_matched_in_another_unicode_form(
    tmp_path: Path, on_disk: str, written: str
) -> None:
    image = _image(tmp_path / f"{on_disk}.png")
    document = {
        "images": [{"id": 7, "file_name": f"{written}.png"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    annotations = _write(tmp_path / "val.json", json.dumps(document))
    lines: list[str] = []
    matched = match_files(annotations, [ImageFile(str(image))], lines.append)
    assert [entry.image_id for entry in matched.images] == [7]
    assert lines == []
