"""YOLO: which YAML file describes the data, paths of both kinds, lines of a tracker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.data.data_sets import open_data_set
from model.data.errors import DataError
from tests.model.data.layouts import (
    coco_document,
    opened,
    stems,
    write_image,
    write_text,
    write_voc,
)

_YAML = "train: images/train\nnames: [cat, dog]\n"
_UNRELATED = {
    "dvc.yaml": "stages: {train: {cmd: run}}\n",
    "params.yaml": "train: {epochs: 3}\nnames: []\n",
    "mkdocs.yml": "nav: !!python/name:some.names\n",
    "data.yml": "version: 2\n",
}


def _yolo(folder: Path, labels: str = "1 0.5 0.5 0.25 0.5\n", yaml: str = _YAML) -> Path:
    write_image(folder / "images" / "train" / "a.png")
    write_text(folder / "labels" / "train" / "a.txt", labels)
    return write_text(folder / "data.yaml", yaml)


@pytest.mark.parametrize("name", _UNRELATED)
@pytest.mark.parametrize("layout", ["COCO", "VOC", "YOLO"])
def test_yaml_file_of_another_program_is_ignored(tmp_path: Path, layout: str, name: str) -> None:
    if layout == "COCO":
        write_image(tmp_path / "train" / "a.png")
        write_text(tmp_path / "train.json", json.dumps(coco_document()))
    elif layout == "VOC":
        write_voc(tmp_path, {"a": "cat"})
    else:
        _yolo(tmp_path).rename(tmp_path / "cats.yaml")
    write_text(tmp_path / name, _UNRELATED[name])
    assert stems(opened(tmp_path)) == ["a"]


def test_yaml_files_that_all_describe_data_are_named(tmp_path: Path) -> None:
    file = _yolo(tmp_path).rename(tmp_path / "cats.yaml")
    write_text(tmp_path / "dogs.yml", _YAML)
    with pytest.raises(DataError, match=r"cats\.yaml, dogs\.yml are all .*: name one of them"):
        open_data_set(tmp_path)
    assert stems(opened(file)) == ["a"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("dvc.yaml", "stages: {}\n", r"no YAML file there \(dvc\.yaml\) has names and a split"),
        ("data.yaml", "train: images\n", r"data\.yaml: names must be a list"),
        ("data.yaml", "names: [cat]\n", r"data\.yaml: it has none of train, val, test"),
        ("dataset.yml", "names: [cat", r"dataset\.yml: not YAML"),
    ],
)
def test_folder_says_why_its_yaml_file_is_not_used(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    write_text(tmp_path / name, text)
    with pytest.raises(DataError, match=words):
        open_data_set(tmp_path)


def test_relative_and_absolute_folders_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _yolo(tmp_path / "set", yaml=f"train: [images/train, {tmp_path}/more]\nnames: [cat, dog]\n")
    write_image(tmp_path / "more" / "b.png")
    monkeypatch.chdir(tmp_path)
    data = opened(Path("set"))
    assert stems(data) == ["a", "b"]
    assert all((data.folder / image.file_name).is_file() for image in data.truth.images)
    assert [len(image.boxes) for image in data.truth.images] == [1, 0]


def test_folder_that_is_named_in_both_ways_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = f"[images/train, {tmp_path}/images/train]"
    _yolo(tmp_path, yaml=f"train: {entries}\nnames: [cat, dog]\n")
    monkeypatch.chdir(tmp_path)
    assert stems(opened(Path("data.yaml"))) == ["a"]


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.25 0.5 0.87 1", "0 0.5 0.5 0.25 0.5 0.87 17", "0 0.99 0.5 0.04 0.2 1 1"],
    ids=["id 1", "id 17", "box beyond the edge"],
)
def test_line_with_a_confidence_and_a_track_id_is_an_error(tmp_path: Path, line: str) -> None:
    _yolo(tmp_path, line)
    with pytest.raises(DataError, match="a box with a confidence and a track id") as caught:
        open_data_set(tmp_path)
    assert "a.txt:1" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.25 0.75 0.5 0.75 0.5 1", (20, 45, 20, 15)),
        ("0 0.5 0.5 0.25 0.5 0.75 1.0", (20, 30, 40, 30)),
        ("0 0.5 0.5 0.25 0.5 0.75 0", (20, 0, 40, 30)),
        ("0 0.5 0.5 0.25 0.5 0.75 0.75", (20, 30, 40, 15)),
    ],
    ids=["at the edge", "decimal point", "at 0", "inside"],
)
def test_triangle_is_no_line_of_a_tracker(
    tmp_path: Path, line: str, box: tuple[float, ...]
) -> None:
    _yolo(tmp_path, line)
    (image,) = opened(tmp_path).truth.images
    assert image.boxes[0].xywh == box


def test_triangle_in_pixels_must_be_relative(tmp_path: Path) -> None:
    _yolo(tmp_path, "0 10 20 30 40 50 60")
    with pytest.raises(DataError, match="they must be relative"):
        open_data_set(tmp_path)
