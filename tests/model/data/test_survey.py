"""Images that are in two splits, and files with the same content."""

from __future__ import annotations

from pathlib import Path

from model.data.survey import same_files, shared_images
from tests.model.data.layouts import opened, write_image, write_text


def _yolo(folder: Path, val: str) -> Path:
    for name in "ab":
        write_image(folder / "images" / "train" / f"{name}.png", {"a": "red", "b": "blue"}[name])
        write_text(folder / "labels" / "train" / f"{name}.txt", "0 0.5 0.5 0.5 0.5")
    return write_text(folder / "data.yaml", f"train: images/train\nval: {val}\nnames: [cat]\n")


def test_images_of_the_same_path_are_in_both_splits(tmp_path: Path) -> None:
    file = _yolo(tmp_path, "images/train")
    train, val = opened(file), opened(file, "val")
    assert shared_images(train, val) == ["a.png", "b.png"]
    assert same_files([train, val]) == []


def test_images_behind_a_link_are_in_both_splits(tmp_path: Path) -> None:
    file = _yolo(tmp_path, "images/val")
    write_image(tmp_path / "images" / "val" / "c.png")
    (tmp_path / "images" / "val" / "d.png").symlink_to(tmp_path / "images" / "train" / "a.png")
    write_text(tmp_path / "labels" / "val" / "c.txt", "0 0.5 0.5 0.5 0.5")
    assert shared_images(opened(file), opened(file, "val")) == ["d.png"]


def test_copies_are_pairs_of_files(tmp_path: Path) -> None:
    file = _yolo(tmp_path, "images/val")
    copy = tmp_path / "images" / "val" / "copy.png"
    write_image(copy).write_bytes((tmp_path / "images" / "train" / "a.png").read_bytes())
    write_text(tmp_path / "labels" / "val" / "copy.txt", "0 0.5 0.5 0.5 0.5")
    train, val = opened(file), opened(file, "val")
    assert shared_images(train, val) == []
    assert same_files([train, val]) == [(tmp_path / "images" / "train" / "a.png", copy)]
