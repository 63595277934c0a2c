"""Finding the annotations and images of a split in a folder of COCO."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.data.errors import DataError
from model.evaluation.coco_folder import find_coco_files


def coco(root: Path, images: str = "val2017", split: str = "val2017") -> Path:
    (root / images).mkdir(parents=True)
    (root / "annotations").mkdir()
    (root / "annotations" / f"instances_{split}.json").write_text("{}")
    return root


@pytest.mark.parametrize("images", ["val2017", "images/val2017"])
def test_both_layouts_are_found(tmp_path: Path, images: str) -> None:
    files = find_coco_files(coco(tmp_path, images))
    assert files.annotations == tmp_path / "annotations" / "instances_val2017.json"
    assert files.images == tmp_path / images


def test_another_split(tmp_path: Path) -> None:
    files = find_coco_files(coco(tmp_path, "mini", "mini"), "mini")
    assert (files.annotations.name, files.images.name) == ("instances_mini.json", "mini")


def test_what_is_missing_is_named_with_the_places_that_were_searched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; expected is DIR/annotations/inst"):
        find_coco_files(tmp_path / "none")
    with pytest.raises(DataError) as error:
        find_coco_files(tmp_path)
    assert f"{tmp_path}/annotations/instances_val2017.json" in str(error.value)
    assert f"{tmp_path}/val2017 or {tmp_path}/images/val2017" in str(error.value)
    (coco(tmp_path) / "val2017").rmdir()
    with pytest.raises(DataError, match=r"lacks the folder of images, .*val2017 or"):
        find_coco_files(tmp_path)


def test_likely_mistakes_have_a_hint(tmp_path: Path) -> None:
    root = coco(tmp_path / "coco")
    for name in ("annotations", "val2017"):
        with pytest.raises(DataError, match=rf"Is {root} meant\?"):
            find_coco_files(root / name)
    with pytest.raises(DataError, match=r"Its annotations are of val2017 \(--split\)"):
        find_coco_files(root, "train2017")
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    (zipped / "val2017.zip").touch()
    with pytest.raises(DataError, match=r"val2017\.zip must be unpacked first"):
        find_coco_files(zipped)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match="is not a folder"):
        find_coco_files(file)


@pytest.mark.parametrize("split", ["", "..", "a/b", "/etc"])
def test_a_split_is_a_name(tmp_path: Path, split: str) -> None:
    with pytest.raises(DataError, match="is no split of COCO"):
        find_coco_files(coco(tmp_path), split)
