"""COCO JSON in the usual folder layouts: where a split's file and its images are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.data.document_checks import name_of_file, read_document
from model.data.errors import DataError
from model.data.findings import Findings
from model.data.formats.base import EntryFinder, RawDataSet, files_of, split_names

_TRIED_IMAGES = 20  # the first of them may be missing
_ROBOFLOW = "_annotations.coco.json"
# Of exports without splits: CVAT's, Label Studio's, FiftyOne's.
_WITHOUT_SPLIT = ("annotations/instances_default.json", "result.json", "labels.json", _ROBOFLOW)


class CocoFormat:
    """A JSON file per split, and a folder of images."""

    name = "COCO"
    layout = (
        "train.json and train/, annotations/instances_train2017.json and train2017/, or "
        "train/_annotations.coco.json; exports of CVAT, FiftyOne and Label Studio"
    )

    def recognises(self, path: Path) -> bool:
        """Whether the path is a JSON file, or a folder with the JSON file of a split."""
        if path.is_dir():
            return any(next(_json_files(path, split), None) for split in ("train", "val", "test"))
        return path.suffix.lower() == ".json"

    def read(self, path: Path, split: str, findings: Findings) -> RawDataSet | None:
        """Reads a split of a folder; a JSON file is its own only split, `train`."""
        if not path.is_dir():
            file = path if split == "train" else None
        else:
            file = next(_json_files(path, split), None)
        if file is None:
            return None
        document = read_document(file)
        return RawDataSet(document, find_images(document, file, split), file)


def _json_files(folder: Path, split: str) -> Iterator[Path]:
    """Yields the JSON files of a split, the most specific layout first."""
    find = EntryFinder().find
    annotations = find(folder, "annotations")
    for name in split_names(split):
        places = [
            find(place, file)
            for place in (folder, annotations)
            for file in (f"{name}.json", f"instances_{name}.json")
        ]
        places += _files_of_a_year(annotations, name)
        places.append(find(folder, name, _ROBOFLOW))
        yield from (file for file in places if file.is_file())
    if split == "train":
        yield from (folder / name for name in _WITHOUT_SPLIT if (folder / name).is_file())


def _files_of_a_year(folder: Path, name: str) -> list[Path]:
    """Returns files such as instances_train2017.json, sorted."""
    pattern = re.compile(rf"instances_{re.escape(name)}[0-9].*\.json", re.IGNORECASE)
    return [file for file in files_of(folder, "*") if pattern.fullmatch(file.name)]


def find_images(document: Mapping[str, Any], file: Path, split: str = "train") -> Path:
    """Finds the folder that the file names of a document are relative to.

    Args:
        document: with at least one image.
        file: of the document; the folders around it are searched.
        split: of the document.

    Raises:
        DataError: if no folder has one of the first images; the message names the folders.
    """
    entries = document["images"][:_TRIED_IMAGES]
    names = [str(each.get("file_name") or "") if isinstance(each, dict) else "" for each in entries]
    tried = list(dict.fromkeys(_image_folders(file, split)))
    for name in filter(None, names):
        for folder in tried:
            if name_of_file(name, folder) is not None:
                return folder
    raise DataError(
        f"{file}: its first image, {names[0] or 'without a file_name'}, is in none of "
        f"{', '.join(map(str, tried))}: name the folder with --images"
    )


def _image_folders(file: Path, split: str) -> Iterator[Path]:
    """Yields the folders in which the images of a JSON file may be."""
    find = EntryFinder().find
    is_below = file.parent.name.lower() == "annotations"
    near = [file.parent, file.parent.parent] if is_below else [file.parent]
    stem = re.sub("^instances_", "", file.stem, flags=re.IGNORECASE)
    for place in reversed(near):
        for name in (stem, *split_names(split)):
            yield find(place, name)
            yield find(place, "images", name)
            yield find(place, name, "images")
        yield find(place, "images")
        yield place / "data"
        yield place
