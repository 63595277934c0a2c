"""Data sets in the layouts of YOLO, Pascal VOC and COCO."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.data.annotations import GroundTruth
from model.data.data_sets import open_data_set
from model.data.errors import DataError
from model.training.sources import GroundTruthSource

_SIZE = (80, 60)  # width, height


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    Image.fromarray(rng.integers(0, 255, (*_SIZE[::-1], 3), np.uint8)).save(path)
    return path


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _yolo(folder: Path, yaml: str, labels: str = "1 0.5 0.5 0.25 0.5\n") -> Path:
    _image(folder / "images" / "train" / "a.png")
    _image(folder / "images" / "val" / "b.jpg")
    _write(folder / "labels" / "train" / "a.txt", labels)
    _write(folder / "labels" / "val" / "b.txt", "0 0.5 0.5 1 1\n")
    return _write(folder / "data.yaml", yaml)


_YOLO = "train: images/train\nval: images/val\nnames: [cat, Größe]\n"


@pytest.mark.parametrize(
    "yaml",
    [
        _YOLO,
        "path: .\ntrain: images/train\nval: images/val\nnames: {1: Größe, 0: cat}\n",
        "train: ../images/train\nvalid: ../images/val\nnc: 2\nnames:\n- cat\n- Größe\n",
        "path: HERE\ntrain: [images/train]\nval: HERE/images/val\nnames: [cat, Größe]\n",
        "path: /no/such/folder\ntrain: images/train\nval: images/val\nnames: [cat, Größe]\n",
    ],
    ids=["relative", "path and mapping", "Roboflow", "absolute and list", "path of elsewhere"],
)
def test_yolo_splits_and_names_are_read(tmp_path: Path, yaml: str) -> None:
    folder = tmp_path / "set"
    _yolo(folder, yaml.replace("HERE", str(folder)))
    train, val = (open_data_set(folder, split) for split in ("train", "val"))
    assert train is not None
    assert val is not None
    assert dict(train.truth.categories) == {0: "cat", 1: "Größe"}
    (image,) = train.truth.images
    assert (train.folder / image.file_name).is_file()
    assert [box.xywh for box in image.boxes] == [(30, 15, 20, 30)]
    assert [box.category_id for box in val.truth.images[0].boxes] == [0]
    assert open_data_set(folder, "test") is None


def test_yolo_list_of_files_and_labels_next_to_images(tmp_path: Path) -> None:
    _image(tmp_path / "photos" / "x.png")
    _write(tmp_path / "photos" / "x.txt", "0 0.5 0.5 0.5 0.5")
    _write(tmp_path / "train.txt", "photos/x.png\n\n")
    file = _write(tmp_path / "data.yaml", "train: train.txt\nnames: [a]\n")
    data = open_data_set(file)
    assert data is not None
    assert data.truth.images[0].boxes[0].xywh == (20, 15, 40, 30)


def test_yolo_of_windows_has_a_byte_order_mark_and_backslashes(tmp_path: Path) -> None:
    _yolo(tmp_path, "\ufefftrain: list.txt\nnames: [cat, dog]\n", "\ufeff1 0.5 0.5 0.25 0.5\r\n")
    _write(tmp_path / "list.txt", "\ufeffimages\\train\\a.png\r\n")
    data = open_data_set(tmp_path)
    assert data is not None
    assert [box.category_id for box in data.truth.images[0].boxes] == [1]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_yolo_list_with_an_impossible_name_is_an_error(tmp_path: Path, name: str) -> None:
    _yolo(tmp_path, "train: list.txt\nnames: [cat, dog]\n")
    _write(tmp_path / "list.txt", f"images/train/a.png\nimages/train/{name}.png\n")
    with pytest.raises(DataError, match=r"images without a file_name|that do not exist"):
        open_data_set(tmp_path)


def test_images_behind_links_to_folders_are_found_once(tmp_path: Path) -> None:
    _yolo(tmp_path / "set", "train: images/train\nnames: [cat, dog]\n")
    _image(tmp_path / "elsewhere" / "c.png")
    train = tmp_path / "set" / "images" / "train"
    (train / "more").symlink_to(tmp_path / "elsewhere")
    (train / "loop").symlink_to(train)
    data = open_data_set(tmp_path / "set")
    assert data is not None
    assert [image.file_name for image in data.truth.images] == ["a.png", "more/c.png"]


@pytest.mark.parametrize("name", ["images/train", "labels/train"])
def test_folder_that_may_not_be_read_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Root may read everything, so the refusal is simulated."""
    _yolo(tmp_path, _YOLO)
    secret = str(tmp_path / name)

    def refusing(real: Any, start: str) -> Any:
        def call(path: Any, *more: Any, **named: Any) -> Any:
            if str(path).startswith(start):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *more, **named)

        return call

    for function, start in (("scandir", secret), ("stat", f"{secret}/"), ("open", f"{secret}/")):
        monkeypatch.setattr(os, function, refusing(getattr(os, function), start))
    with pytest.raises(DataError, match=f"{name}.*Permission denied"):
        open_data_set(tmp_path)


def test_folder_of_a_format_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Annotations").mkdir()
    monkeypatch.setattr("os.access", lambda path, _: path == tmp_path)
    with pytest.raises(DataError, match="Annotations cannot be read"):
        open_data_set(tmp_path)


def test_yolo_polygon_becomes_the_box_around_it(tmp_path: Path) -> None:
    _yolo(tmp_path, _YOLO, "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n")
    data = open_data_set(tmp_path)
    assert data is not None
    assert data.truth.images[0].boxes[0].xywh == (20, 15, 40, 30)


def test_yolo_image_without_labels_is_empty_and_reported(tmp_path: Path) -> None:
    _yolo(tmp_path, _YOLO)
    _image(tmp_path / "images" / "train" / "empty.png")
    reports: list[str] = []
    data = open_data_set(tmp_path, "train", reports.append)
    assert data is not None
    assert sorted(len(image.boxes) for image in data.truth.images) == [0, 1]
    assert "without a label file" in reports[0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "class is none of 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class is none of 0 to 1"),
        ("0 0.5 0.5 0.1", "neither a box nor a polygon"),
        ("0 0.5 0.5 0.1 0.1 0.9", "neither a box nor a polygon"),
        ("cat 0.5 0.5 0.1 0.1", "not numbers"),
        ("0 nan 0.5 0.1 0.1", "NaN"),
        ("0 40 30 20 20", r"above 1 \(they must be relative\)"),
        ("0 0.5 0.5 -0.1 0.1", "negative width"),
    ],
)
def test_wrong_yolo_line_is_an_error_with_its_place(
    tmp_path: Path, labels: str, words: str
) -> None:
    _yolo(tmp_path, _YOLO, labels)
    with pytest.raises(DataError, match=words) as caught:
        open_data_set(tmp_path)
    assert "a.txt:1" in str(caught.value)


@pytest.mark.parametrize("keypoints", [" 0.9 0.1 2 0.1 0.9 2", " 0.9 0.1 2"], ids=["two", "one"])
def test_yolo_keypoints_are_left_out(tmp_path: Path, keypoints: str) -> None:
    _yolo(tmp_path, _YOLO + "kpt_shape: [2, 3]\n", f"1 0.5 0.5 0.25 0.5{keypoints}\n")
    data = open_data_set(tmp_path)
    assert data is not None
    assert data.truth.images[0].boxes[0].xywh == (30, 15, 20, 30)


def test_yolo_labels_next_to_images_below_a_folder_named_images(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "set"
    _image(folder / "a.png")
    _write(folder / "a.txt", "0 0.5 0.5 0.25 0.5\n")
    _write(folder / "data.yaml", "train: .\nnc: 2\nnames: [cat]\n")
    reports: list[str] = []
    data = open_data_set(folder, "train", reports.append)
    assert data is not None
    assert len(data.truth.images[0].boxes) == 1
    assert "nc is not the number of names" in reports[0]


def test_boxes_refer_to_the_image_after_exif_rotation(tmp_path: Path) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[30:60, 0:20] = 255  # of the image as it is shown, 80 x 60
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by a quarter turn
    (tmp_path / "images").mkdir()
    stored = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "images" / "a.jpg", exif=exif, quality=100)
    _write(tmp_path / "labels" / "a.txt", "0 0.125 0.75 0.25 0.5")
    _write(tmp_path / "data.yaml", "train: images\nnames: [a]\n")
    data = open_data_set(tmp_path)
    assert data is not None
    image = GroundTruthSource(data.truth, data.folder).load(0)
    assert image.boxes.tolist() == [[0, 30, 20, 60]]
    assert image.pixels.shape == (60, 80, 3)
    assert image.pixels[32:58, 2:18].min() > 200
    assert image.pixels[:28].max() < 50


def test_hidden_files_of_macos_are_ignored(tmp_path: Path) -> None:
    voc, yolo = tmp_path / "voc", tmp_path / "yolo"
    _image(voc / "a.jpg")
    _write(voc / "a.xml", _xml("a.jpg"))
    _write(voc / "._a.xml", "\0")
    _yolo(yolo, _YOLO).rename(yolo / "cats.yaml")
    _write(yolo / "._cats.yaml", "\0")
    _write(yolo / "images" / "train" / "._a.png", "\0")
    for folder in (voc, yolo):
        data = open_data_set(folder)
        assert data is not None
        assert len(data.truth.images) == 1


def test_oddity_of_a_box_names_its_image(tmp_path: Path) -> None:
    _yolo(tmp_path, _YOLO, "1 0.95 0.5 0.4 0.5\n")
    reports: list[str] = []
    open_data_set(tmp_path, "train", reports.append)
    assert "reach beyond" in reports[0]
    assert "a.png" in reports[0]


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("train: images/none\nnames: [a]\n", "there is no"),
        ("train: images/train\n", "names must be a list"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "class numbers 0 to 1"),
        ("names: [a", "not YAML"),
        ("train: images/train\nnames: [yes, no]\n", "YAML needs quotes"),
        ("train: images/train\nnames: [a, null]\n", "names has None"),
        (f"train: {'x' * 300}\nnames: [a]\n", "there is no"),
        ("just text", "not a data.yaml"),
    ],
)
def test_wrong_yaml_is_one_clear_error(tmp_path: Path, yaml: str, words: str) -> None:
    _yolo(tmp_path, yaml)
    with pytest.raises(DataError, match=words):
        open_data_set(tmp_path / "data.yaml")


def test_yolo_without_any_label_file_names_the_expected_place(tmp_path: Path) -> None:
    _image(tmp_path / "images" / "train" / "a.png")
    _write(tmp_path / "data.yaml", _YOLO)
    with pytest.raises(DataError, match=r"none of 1 images .*labels/train/a\.txt"):
        open_data_set(tmp_path)


def _xml(name: str = "a.jpg", size: tuple[int, int] = _SIZE, corners: str = "") -> str:
    box = corners or "<xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>50</ymax>"
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height></size><object><name>dog</name><bndbox>{box}</bndbox></object>"
        "</annotation>"
    )


def test_voc_folder_with_image_sets(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _image(tmp_path / "JPEGImages" / f"{name}.jpg")
        _write(tmp_path / "Annotations" / f"{name}.xml", _xml(f"{name}.jpg"))
        split = {"a": "train", "b": "val"}[name]
        _write(tmp_path / "ImageSets" / "Main" / f"{split}.txt", f"{name}\n")
    for split, name in (("train", "a"), ("val", "b")):
        data = open_data_set(tmp_path, split)
        assert data is not None
        (image,) = data.truth.images
        assert image.file_name == f"JPEGImages/{name}.jpg"
        assert dict(data.truth.categories) == {1: "dog"}
        assert image.boxes[0].xywh == (10, 20, 20, 30)


def test_voc_files_next_to_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _image(tmp_path / "set" / "train" / "a.png")
    _write(tmp_path / "set" / "train" / "a.xml", _xml("elsewhere.jpg", size=(0, 0)))
    monkeypatch.chdir(tmp_path)
    data = open_data_set(Path("set"))
    assert data is not None
    assert (data.folder / data.truth.images[0].file_name).is_file()


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<annotation>", "cannot be parsed"),
        ("<html></html>", "not VOC annotations"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "entities"),
        (_xml(corners="<xmin>1</xmin>"), "four numbers"),
        (_xml(corners="<xmin>9</xmin><ymin>2</ymin><xmax>3</xmax><ymax>5</ymax>"), "max below min"),
        (_xml(size=(60, 80)), "another size"),
        (_xml("b.jpg").replace("dog", " "), "without a name"),
        ('<?xml version="1.0" encoding="none"?>' + _xml(), "cannot be parsed"),
    ],
)
def test_wrong_voc_file_is_an_error(tmp_path: Path, xml: str, words: str) -> None:
    for name in ("a", "good"):
        _image(tmp_path / "JPEGImages" / f"{name}.jpg")
    _write(tmp_path / "Annotations" / "a.xml", xml)
    _write(tmp_path / "Annotations" / "good.xml", _xml("good.jpg"))
    with pytest.raises(DataError, match=words):
        open_data_set(tmp_path)


def test_voc_errors_of_all_files_are_reported(tmp_path: Path) -> None:
    _write(tmp_path / "Annotations" / "a.xml", "<annotation>")
    with pytest.raises(DataError, match="cannot be parsed"):
        open_data_set(tmp_path)


@pytest.mark.parametrize("width", ["²", "9" * 5000])
def test_voc_size_that_is_no_number_is_ignored(tmp_path: Path, width: str) -> None:
    _image(tmp_path / "a.jpg")
    _write(tmp_path / "a.xml", _xml().replace(">80<", f">{width}<"))
    assert open_data_set(tmp_path) is not None


def test_voc_names_with_spaces_in_a_list(tmp_path: Path) -> None:
    for name in ("my a", "b"):
        _image(tmp_path / "JPEGImages" / f"{name}.jpg")
        _write(tmp_path / "Annotations" / f"{name}.xml", _xml(f"{name}.jpg"))
    listed = _write(tmp_path / "ImageSets" / "Main" / "train.txt", "\ufeffmy a\r\nb -1\r\n")
    data = open_data_set(tmp_path)
    assert data is not None
    assert len(data.truth.images) == 2
    listed.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not a list of XML files"):
        open_data_set(tmp_path)


_COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40]}],
    "categories": [{"id": 3, "name": "cat"}],
}


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("train.json", "train/a.png"),
        ("train.json", "images/a.png"),
        ("annotations/instances_train2017.json", "train2017/a.png"),
        ("annotations/train.json", "images/train/a.png"),
        ("train/_annotations.coco.json", "train/a.png"),
        ("annotations/instances_default.json", "images/default/a.png"),
        ("annotations/instances_default.json", "images/a.png"),
        ("labels.json", "data/a.png"),
        ("result.json", "images/a.png"),
        ("_annotations.coco.json", "a.png"),
    ],
)
def test_coco_layouts(tmp_path: Path, file: str, image: str) -> None:
    _image(tmp_path / image)
    _write(tmp_path / file, json.dumps(_COCO))
    for path in (tmp_path, tmp_path / file):
        data = open_data_set(path)
        assert data is not None
        assert data.folder / "a.png" == tmp_path / image


def test_coco_file_names_of_windows(tmp_path: Path) -> None:
    document = {**_COCO, "images": [{"id": 1, "file_name": "sub\\a.png"}]}
    _image(tmp_path / "train" / "sub" / "a.png")
    _write(tmp_path / "train.json", json.dumps(document))
    data = open_data_set(tmp_path)
    assert data is not None
    assert data.truth.images[0].file_name == "sub/a.png"
    truth = GroundTruth.read(tmp_path / "train.json", images=tmp_path / "train")
    assert truth.images[0].file_name == "sub/a.png"


@pytest.mark.parametrize("below", ["../../data", "/label-studio", "..\\\\data"])
def test_coco_file_names_of_label_studio_are_paths_of_its_server(
    tmp_path: Path, below: str
) -> None:
    names = [f"{below}/media/upload/1/a.png", f"{below}/media/upload/2/b.png"]
    document = {**_COCO, "images": [{"id": n, "file_name": each} for n, each in enumerate(names)]}
    for name in ("a.png", "b.png"):
        _image(tmp_path / "images" / name)
    file = _write(tmp_path / "result.json", json.dumps(document))
    data = open_data_set(tmp_path)
    assert data is not None
    assert [data.folder / image.file_name for image in data.truth.images] == [
        tmp_path / "images" / "a.png", tmp_path / "images" / "b.png"
    ]  # fmt: skip
    truth = GroundTruth.read(file, images=tmp_path)
    assert [image.file_name for image in truth.images] == ["images/a.png", "images/b.png"]


def test_coco_file_that_two_paths_may_mean_is_not_used(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"../data/{n}/a.png"} for n in (1, 2)]
    _image(tmp_path / "images" / "a.png")
    file = _write(tmp_path / "result.json", json.dumps({**_COCO, "images": images}))
    with pytest.raises(DataError, match="none of the 2 images"):
        GroundTruth.read(file, images=tmp_path)


def test_coco_file_without_its_images_names_the_searched_folders(tmp_path: Path) -> None:
    file = _write(tmp_path / "train.json", json.dumps(_COCO))
    with pytest.raises(DataError, match=r"a\.png, is in none of .*--images"):
        open_data_set(file)


def test_coco_folder_is_found_though_its_first_image_is_missing(tmp_path: Path) -> None:
    _image(tmp_path / "train" / "a.png")
    absent = {"id": 2, "file_name": "x" * 300}
    document = {**_COCO, "images": [absent, *_COCO["images"]]}
    with pytest.raises(DataError, match="image files that do not exist: 1"):
        open_data_set(_write(tmp_path / "train.json", json.dumps(document)))


def test_folder_of_no_known_format_names_the_layouts(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"YOLO \(data\.yaml.*COCO.*Pascal VOC"):
        open_data_set(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        open_data_set(tmp_path / "absent")
