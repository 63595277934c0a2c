"""Pascal VOC: which images a split has, the ids of its classes, and the image of an XML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.data.data_sets import open_data_set
from model.data.errors import DataError
from tests.model.data.layouts import opened, stems, voc_xml, write_image, write_text, write_voc


def _voc(folder: Path, **lists: str) -> Path:
    """Images a to d, and lists such as `train="a b"`."""
    write_voc(folder, dict.fromkeys("abcd", "dog"))
    for name, files in lists.items():
        text = "".join(f"{file}\n" for file in files.split())
        write_text(folder / "ImageSets" / "Main" / f"{name}.txt", text)
    return folder


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"trainval": "a b", "test": "c d"}, "ab"),
        ({"trainval": "a b c", "val": "c", "test": "d"}, "ab"),
        ({"val": "b"}, "acd"),
        ({"test": "b", "valid": "c"}, "ad"),
        ({"train": "a b", "val": "b", "trainval": "a b c"}, "ab"),
        ({"default": "a b c d"}, "abcd"),
    ],
    ids=["trainval", "trainval and val", "val", "test and valid", "train", "no split"],
)
def test_images_to_train_on_are_none_of_other_lists(
    tmp_path: Path, lists: dict[str, str], expected: str
) -> None:
    assert stems(opened(_voc(tmp_path, **lists))) == list(expected)


def test_trainval_is_no_list_of_validation_images(tmp_path: Path) -> None:
    folder = _voc(tmp_path, trainval="a b", test="c d")
    assert open_data_set(folder, "val") is None
    assert stems(opened(folder, "test")) == ["c", "d"]


def test_lists_that_leave_no_image_to_train_on_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the split 'train' lists no XML file"):
        open_data_set(_voc(tmp_path, val="a b c d"))


def test_a_class_has_the_same_id_in_every_split(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": "cat", "b": "dog", "c": "dog", "d": "bird"})
    for name, files in {"train": "a\nb\n", "val": "c\n", "test": "d\n"}.items():
        write_text(folder / "ImageSets" / "Main" / f"{name}.txt", files)
    found = {split: dict(opened(folder, split).truth.categories) for split in ("train", "val")}
    assert found == {"train": {2: "cat", 3: "dog"}, "val": {3: "dog"}}
    assert dict(opened(folder, "test").truth.categories) == {1: "bird"}


def test_a_class_has_the_same_id_in_folders_of_splits(tmp_path: Path) -> None:
    for split, label in (("train", "dog"), ("valid", "cat")):
        write_image(tmp_path / split / "a.jpg")
        write_text(tmp_path / split / "a.xml", voc_xml("a.jpg", label))
    write_text(tmp_path / "valid" / "broken.xml", "<annotation>")  # an error of its own split only
    assert dict(opened(tmp_path).truth.categories) == {2: "dog"}


def test_image_with_the_name_of_the_xml_file_comes_before_the_named_one(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": "dog", "aug_a": "dog"})
    write_text(folder / "Annotations" / "aug_a.xml", voc_xml("a.jpg"))
    data = opened(folder)
    assert stems(data) == ["a", "aug_a"]
    (finding,) = data.findings.report("").splitlines()[1:]
    assert "name another image than the one with their own name" in finding
    assert "aug_a.xml: a.jpg, not aug_a.jpg" in finding


def test_named_image_is_used_if_none_has_the_name_of_the_xml_file(tmp_path: Path) -> None:
    write_image(tmp_path / "JPEGImages" / "photo.jpg")
    write_text(tmp_path / "Annotations" / "1.xml", voc_xml("photo.jpg"))
    data = opened(tmp_path)
    assert stems(data) == ["photo"]
    assert not data.findings.has_oddities


def test_named_image_decides_between_two_with_the_name_of_the_xml_file(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": "dog"})
    write_image(folder / "JPEGImages" / "a.png")
    write_text(folder / "Annotations" / "a.xml", voc_xml("a.png"))
    data = opened(folder)
    assert [image.file_name for image in data.truth.images] == ["JPEGImages/a.png"]
    assert not data.findings.has_oddities
