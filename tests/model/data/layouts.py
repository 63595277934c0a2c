"""Small data sets in the layouts of YOLO, Pascal VOC and COCO, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from model.data.data_sets import DataSet, open_data_set

CORNERS = "<xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>40</ymax>"


def write_image(path: Path, colour: str = "teal", size: tuple[int, int] = (80, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def voc_xml(file_name: str, name: str = "dog") -> str:
    """A VOC annotation with one box."""
    box = f"<object><name>{name}</name><bndbox>{CORNERS}</bndbox></object>"
    return f"<annotation><filename>{file_name}</filename>{box}</annotation>"


def write_voc(folder: Path, classes: dict[str, str]) -> Path:
    """Annotations/ and JPEGImages/: an image for each name, with one box of the class."""
    for name, label in classes.items():
        write_image(folder / "JPEGImages" / f"{name}.jpg")
        write_text(folder / "Annotations" / f"{name}.xml", voc_xml(f"{name}.jpg", label))
    return folder


def coco_document(file_name: str = "a.png") -> dict[str, Any]:
    """One image with one box."""
    return {
        "images": [{"id": 1, "file_name": file_name}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": 3, "name": "cat"}],
    }


def opened(path: Path, split: str = "train") -> DataSet:
    """Opens a split that there is."""
    data = open_data_set(path, split)
    assert data is not None
    return data


def stems(data: DataSet) -> list[str]:
    """The names of the images, without suffix."""
    return [Path(image.file_name).stem for image in data.truth.images]
