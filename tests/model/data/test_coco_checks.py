"""Checks of COCO data before it is used: one report of each kind of error, with the first."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.data.annotations import GroundTruth
from model.data.errors import DataError

Change = Callable[[dict[str, Any]], object]

GOOD: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "1.jpg", "width": 64, "height": 48},
        {"id": 2, "file_name": "2.jpg", "width": 64, "height": 48},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 30, 20], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [5, 5, 8, 8], "area": 64},
        {"id": 3, "image_id": 2, "category_id": 9, "bbox": [0, 0, 64, 48], "iscrowd": 0},
    ],
    "categories": [{"id": 7, "name": "nut, hex"}, {"id": 9, "name": "bolt"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2):
        Image.new("RGB", (64, 48), "teal").save(tmp_path / f"{number}.jpg")
    return tmp_path


def check(folder: Path, document: object) -> str:
    """Reads a document with its images; returns the report of oddities."""
    path = folder / "set.json"
    path.write_text(json.dumps(document))
    reports: list[str] = []
    GroundTruth.read(path, images=folder, report=reports.append)
    return "\n".join(reports)


def changed(change: Change) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    change(document)
    return document


def change_all(field: str, value: object) -> Change:
    """Changes a field of every annotation."""

    def change(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            annotation[field] = value

    return change


def change_one(kind: str, number: int, **fields: object) -> Change:
    """Changes fields of one entry; None removes a field."""

    def change(document: dict[str, Any]) -> None:
        entry = document[kind][number]
        entry.update(fields)
        document[kind][number] = {k: v for k, v in entry.items() if v is not None}

    return change


def test_good_data_has_no_report(folder: Path) -> None:
    assert check(folder, GOOD) == ""


ERRORS: dict[str, tuple[Change, str]] = {
    "text image ids": (
        change_all("image_id", "1"),
        r'image_id is not an integer: 3, the first: annotations\[0\] \(id 1\): image_id is "1"',
    ),
    "image id of no image": (
        change_all("image_id", 101),
        r"image_id no image has: 3, the first: annotations\[0\] \(id 1\): image_id is 101",
    ),
    "text id of an image": (
        change_one("images", 1, id="2"),
        r'images whose id is not an integer: 1, the first: images\[1\] \(id "2"\)',
    ),
    "true as an id": (change_one("images", 0, id=True), r"id is not an integer: 1,.*true"),
    "id beyond 64 bits": (change_one("images", 0, id=2**64), r"id is not an integer: 1"),
    "id with a fraction": (change_one("images", 0, id=1.5), r"id is not an integer: 1"),
    "image id twice": (
        change_one("images", 1, id=1),
        r"images with the id of another one: 1, the first: images\[1\] \(id 1\)",
    ),
    "category id twice": (
        change_one("categories", 1, id=7),
        r"categories with the id of another one: 1",
    ),
    "annotation id twice": (
        change_one("annotations", 2, id=1),
        r"annotations with the id of another one.*: 1, the first: annotations\[2\] \(id 1\)",
    ),
    "unknown category": (
        change_one("annotations", 1, category_id=77),
        r"category_id no category has: 1, the first: annotations\[1\] \(id 2\) of 1.jpg",
    ),
    "no category": (
        change_one("annotations", 1, category_id=None),
        r"category_id is not an integer: 1,.* category_id is null",
    ),
    "no bbox": (
        change_one("annotations", 1, bbox=None),
        r"without bbox.*: 1, the first: annotations\[1\] \(id 2\)",
    ),
    "bbox of three": (change_one("annotations", 1, bbox=[1, 2, 3]), r"not four numbers.*: 1,"),
    "bbox of text": (change_one("annotations", 1, bbox=["1", 2, 3, 4]), r"not four numbers.*: 1,"),
    "infinite bbox": (
        change_one("annotations", 1, bbox=[0, 0, float("inf"), 4]),
        r"not four numbers.*: 1,",
    ),
    "bbox beyond floats": (
        change_one("annotations", 1, bbox=[0, 10**400, 3, 4]),
        r"not four numbers.*: 1,",
    ),
    "control character in a name": (
        change_one("categories", 0, name="a\x1b[31m"),
        r"control characters or lone surrogates in the name: 1,.*u001b",
    ),
    "lone surrogate in a name": (
        change_one("categories", 0, name="\ud800"),
        r"control characters or lone surrogates in the name: 1,.*ud800",
    ),
    "NaN in a bbox": (
        change_one("annotations", 1, bbox=[0, float("nan"), 3, 4]),
        r"not four numbers.*: 1,",
    ),
    "negative width": (
        change_one("annotations", 1, bbox=[9, 9, -4, 4]),
        r"negative width or height: 1,.*\[9, 9, -4, 4\]",
    ),
    "all boxes outside": (
        change_all("bbox", [1000, 1000, 10, 10]),
        r"all boxes are outside their images: 3,.*the image 64 x 48",
    ),
    "relative boxes": (
        change_all("bbox", [0.1, 0.2, 0.3, 0.4]),
        r"all boxes are within 0\.\.1 \(bbox must be in pixels\): 3,",
    ),
    "iscrowd as text": (
        change_all("iscrowd", "0"),
        r"iscrowd is neither 0 nor 1: 3, the first: annotations\[0\] \(id 1\) of 1.jpg: iscrowd",
    ),
    "text area": (change_one("annotations", 1, area="big"), r"impossible area: 1"),
    "another size": (
        change_one("images", 0, width=640, height=480),
        r"another size than the annotations say.*: 1, the first: image 1: .*1\.jpg has 64 x 48 "
        r"pixels, the annotations say 640 x 480",
    ),
    "impossible size": (change_one("images", 0, width="64"), r"images with an impossible size: 1"),
    "empty class name": (change_one("categories", 0, name=""), r"categories without a name: 1"),
    "blank class name": (change_one("categories", 0, name=" \t"), r"categories without a name: 1"),
    "no class name": (change_one("categories", 0, name=None), r"categories without a name: 1"),
    "class name twice": (
        change_one("categories", 0, name="bolt "),
        r"categories with the name of another one: 1, the first: categories\[1\] \(id 9\)",
    ),
    "reserved class name": (change_one("categories", 0, name="N/A"), r"reserved name 'N/A'.*: 1"),
    "no categories": (lambda d: d["categories"].clear(), r"empty list of categories"),
    "missing image": (
        change_one("images", 1, file_name="absent.jpg"),
        r"image files that do not exist: 1, the first: image 2: .*absent\.jpg",
    ),
    "no file name": (change_one("images", 1, file_name=None), r"images without a file_name: 1"),
    "an entry that is a number": (
        lambda d: d["annotations"].append(3),
        r"annotations that are not JSON objects: 1, the first: annotations\[3\] is 3",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_counted_with_the_first_of_each_kind(name: str, folder: Path) -> None:
    change, expected = ERRORS[name]
    with pytest.raises(DataError, match=expected) as caught:
        check(folder, changed(change))
    assert str(caught.value).startswith(f"{folder / 'set.json'} cannot be used:\n")


ODDITIES: dict[str, tuple[Change, str]] = {
    "class without a box": (
        lambda d: d["categories"].append({"id": 12, "name": "cat"}),
        r'categories without a box: 1, the first: categories\[2\] \(id 12\): "cat"',
    ),
    "one box outside": (
        change_one("annotations", 1, bbox=[64, 0, 5, 5]),
        r"boxes outside their image: 1, the first: annotations\[1\] \(image 1: 1.jpg\)",
    ),
    "box beyond the edge": (
        change_one("annotations", 0, bbox=[30, 20, 60, 40]),
        r"boxes that reach beyond their image.*: 1",
    ),
    "box without an area": (
        change_one("annotations", 1, bbox=[1, 1, 0, 5]),
        r"boxes without an area: 1",
    ),
    "annotation id 0": (change_one("annotations", 0, id=0), r"the id 0, which pycocotools.*: 1"),
    "ids with a decimal point": (change_all("image_id", 1.0), r"with a decimal point: 3"),
    "the same file twice": (
        change_one("images", 1, file_name="1.jpg"),
        r"images with the file of another one: 1",
    ),
}


@pytest.mark.parametrize(
    ("boxes", "crowds", "kinds"), [(100, 250, 0), (101, 0, 1), (300, 9, 1), (301, 0, 2)]
)
def test_images_with_more_boxes_than_are_scored_or_found_are_reported(
    folder: Path, boxes: int, crowds: int, kinds: int
) -> None:
    document = changed(lambda d: d["annotations"].clear())
    document["annotations"] = [
        {"id": n, "image_id": 1, "category_id": 7, "bbox": [n % 50, 1, 9, 9], "iscrowd": crowd}
        for n, crowd in enumerate([0] * boxes + [1] * crowds, 1)
    ]
    report = check(folder, document)
    expected = [
        r"more than 100 boxes \(AP counts at most 100 detections of an image\): 1, the first: "
        rf"image 1: 1\.jpg has {boxes}$",
        r"more than 300 boxes \(by default the model finds at most 300 .*: 1, the first: image 1",
    ]
    found = [bool(re.search(words, report, re.MULTILINE)) for words in expected]
    assert found == [number < kinds for number in range(2)]


@pytest.mark.parametrize("name", ODDITIES)
def test_oddities_are_reported_and_stop_nothing(name: str, folder: Path) -> None:
    change, expected = ODDITIES[name]
    report = check(folder, changed(change))
    assert report.startswith(f"{folder / 'set.json'} has oddities:\n  warning: ")
    assert re.search(expected, report), report


def test_report_has_every_kind_at_once(folder: Path) -> None:
    document = changed(change_one("annotations", 0, bbox=None))
    change_one("annotations", 1, category_id=77)(document)
    change_one("images", 1, file_name="absent.jpg")(document)
    document["categories"].append({"id": 12, "name": "cat"})
    with pytest.raises(DataError) as caught:
        check(folder, document)
    words = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert words == ["error"] * 3 + ["warning"]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_size_before_the_exif_rotation_is_an_error(folder: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (64, 48)).save(folder / "1.jpg", exif=exif)
    with pytest.raises(DataError, match=r"before the EXIF rotation .*has 48 x 64 .*say 64 x 48"):
        check(folder, GOOD)
    turned = changed(change_one("images", 0, width=48, height=64))
    assert "EXIF" not in check(folder, turned)


def test_rotation_that_keeps_the_size_is_an_oddity(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (64, 48)).save(folder / "1.jpg", exif=exif)
    assert "rotated or mirrored by EXIF" in check(folder, GOOD)


def test_exif_after_the_pixels_of_a_png_counts(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "1.png", exif=exif)
    data = (folder / "1.png").read_bytes()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    end = data.index(b"IEND") - 4
    chunk = data[start : start + length]
    (folder / "1.png").write_bytes(data[:start] + data[start + length : end] + chunk + data[end:])
    turned = change_one("images", 0, file_name="1.png", width=48, height=64)
    assert check(folder, changed(turned)).count("another size") == 0


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    ("data", "named"),
    [(LFS, "a Git LFS pointer instead of the file"), (PAGE, "an HTML page"), (b"", "empty")],
)
def test_image_file_of_another_kind_is_named(folder: Path, data: bytes, named: str) -> None:
    (folder / "2.jpg").write_bytes(data)
    with pytest.raises(DataError, match=rf"cannot be read: 1, the first: image 2: .*{named}"):
        check(folder, GOOD)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (LFS, "is a Git LFS pointer instead of the file"),
        (PAGE, "is an HTML page"),
        (b"[]", "a list, as of COCO results"),
        (b"[" * 100_000, "not COCO-format JSON"),
        (b'{"images": [], "annotations": []}', "no list 'categories'"),
    ],
)
def test_annotation_file_of_another_kind_is_named(folder: Path, data: bytes, named: str) -> None:
    (folder / "set.json").write_bytes(data)
    with pytest.raises(DataError, match=named):
        GroundTruth.read(folder / "set.json")


def test_absent_folder_of_images_is_named(folder: Path) -> None:
    (folder / "set.json").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match="no such folder"):
        GroundTruth.read(folder / "set.json", images=folder / "absent")


def test_images_beyond_the_limit_are_not_read(folder: Path) -> None:
    (folder / "2.jpg").unlink()
    (folder / "set.json").write_text(json.dumps(GOOD))
    truth = GroundTruth.read(folder / "set.json", 1, images=folder)
    assert [image.image_id for image in truth.images] == [1]
