"""YOLO folders: `data.yaml` with the splits and class names, one text file of boxes per image.

A line of a text file is `class centre-x centre-y width height`, relative to the image, or a polygon
`class x1 y1 x2 y2 x3 y3 ...`, whose enclosing box is used. With `kpt_shape` in the YAML file,
keypoints follow the box; they are left out.
"""

from __future__ import annotations

import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.errors import AbsentSplit, DataError
from model.data.findings import Findings
from model.data.formats.base import (
    RawDataSet,
    categories_of,
    common_folder,
    image_files,
    split_names,
)
from model.data.formats.data_yaml import class_names, find_yaml, read_yaml
from model.data.image_files import read_size
from model.data.input_files import read_text_file, spellings
from model.images.formats import IMAGE_SUFFIXES

_READERS = 8  # threads
_BOX_NUMBERS = 4
_POLYGON_NUMBERS = 6  # of a triangle
_BEYOND = 1.01  # relative coordinates up to this are rounding
_BEYOND_TRACKED = 0.05  # of the image, that predicted boxes reach beyond it
_TRACKED = (
    "label lines that may be a box with a confidence and a track id (keep the first five words; "
    "of a triangle, write the last number with a decimal point)"
)


class YoloFormat:
    """A `data.yaml`, or a folder that contains one."""

    name = "YOLO"
    layout = "data.yaml, images/ and labels/"

    def recognises(self, path: Path) -> bool:
        """Whether the path is a YAML file, or a folder with one of a data set."""
        return find_yaml(path) is not None

    def read(self, path: Path, split: str, findings: Findings) -> RawDataSet | None:
        """Reads the images of a split and their text files."""
        file = find_yaml(path)
        if file is None:
            raise DataError(f"{path}: there is no data.yaml")
        values = read_yaml(file)
        names = class_names(values, file)
        images = _images_of(values, file, split)
        if images is None:
            return None
        if not images:
            raise DataError(f"{file}: the split {split!r} has no image file")
        count = values.get("nc")
        if isinstance(count, int) and count != len(names):
            findings.oddity("nc is not the number of names", f"{file}: {count}, not {len(names)}")
        folder = common_folder(images)
        reader = _LabelReader(names, has_keypoints="kpt_shape" in values, findings=findings)
        return RawDataSet(_document(images, folder, reader), folder, file)


def _images_of(values: dict[str, Any], file: Path, split: str) -> list[Path] | None:
    """Returns the image files of a split; None if the YAML file does not name it."""
    given = next((values[name] for name in split_names(split) if values.get(name)), None)
    if given is None:
        return None
    # Absolute, as entries may be: images of both kinds would have no folder in common.
    home = file.parent.absolute()
    base = home
    if isinstance(values.get("path"), str) and (base / values["path"]).is_dir():
        base = base / values["path"]
    files: list[Path] = []
    for entry in given if isinstance(given, list) else [given]:
        place = _find(base, home, str(entry))
        if place is None:
            raise AbsentSplit(f"{file}: {split} is {entry!r}, but there is no {base / str(entry)}")
        files += image_files(place) if place.is_dir() else _listed(place, base)
    return list(dict.fromkeys(files))


def _find(base: Path, home: Path, entry: str) -> Path | None:
    """Finds the folder or list of a split.

    Exports of Roboflow write `../train/images` where `train/images` next to the YAML file is meant.
    """
    for text in (entry, entry.replace("\\", "/")):  # Windows' paths
        stripped = text.removeprefix("../")
        for form in (text, stripped, *spellings(text)):
            for place in (base / form, home / form):
                if os.path.exists(place):  # Path.exists raises for a name that is too long
                    return place
    return None


def _listed(file: Path, base: Path) -> list[Path]:
    """Returns the image files that a text file lists, relative to it or to `base`."""
    try:
        lines = read_text_file(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a list of image files: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    return [
        _find(base, file.parent, name) or base / name
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]


def label_file(image: Path) -> Path:
    """Returns the text file of an image: in `labels/` for one in `images/`, else next to it."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _label_files(images: list[Path]) -> list[Path | None]:
    """Returns the label file of each image; None where it is absent.

    Raises:
        DataError: if all are absent.
    """
    # A data set whose label files are next to its images may itself be in a folder "images".
    for place_of in (label_file, lambda image: image.with_suffix(".txt")):
        files = [place_of(image) for image in images]
        found = [None if _is_absent(file) else file for file in files]
        if any(found):
            return found
    raise DataError(
        f"none of {len(images)} images has a label file, the first would be {label_file(images[0])}"
    )


def _document(images: list[Path], folder: Path, reader: _LabelReader) -> dict[str, Any]:
    """Returns the COCO document of the images; category ids are the class numbers."""
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    label_files = _label_files(images)
    with ThreadPoolExecutor(_READERS) as readers:
        sizes = readers.map(_size_of, images)
        rows = zip(images, label_files, sizes, strict=True)
        for number, (image, labels, size) in enumerate(rows, 1):
            entries.append({"id": number, "file_name": str(image.relative_to(folder))})
            if labels is None:
                place = str(label_file(image))
                reader.findings.oddity("images without a label file (used as empty)", place)
            elif size is not None:  # otherwise the check of the image files reports it
                annotations += [{"image_id": number, **box} for box in reader.boxes(labels, size)]
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)]
    return {
        "images": entries,
        "annotations": numbered,
        "categories": categories_of(reader.names, first_id=0),
    }


def _is_absent(file: Path) -> bool:
    """Whether there is no such file; it may be there in a folder that may not be searched."""
    try:
        return not stat.S_ISREG(os.stat(file).st_mode)
    except PermissionError:
        return False
    except (OSError, ValueError):
        return True


def _size_of(file: Path) -> tuple[int, int] | None:
    """Returns width and height in pixels; None if the file cannot be read."""
    try:
        size = read_size(file)
    except (DataError, OSError, ValueError):  # the last for a name with a null byte
        return None
    return size.width, size.height


@dataclass(frozen=True)
class _LabelReader:
    """Reads label files.

    Attributes:
        names: of the classes.
        has_keypoints: whether keypoints follow the box of a line.
        findings: gets the errors and oddities.
    """

    names: tuple[str, ...]
    has_keypoints: bool
    findings: Findings

    def boxes(self, file: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
        """Returns the boxes of a label file as COCO annotations, without their image.

        Args:
            file: the label file.
            size: width and height of the image in pixels.
        """
        try:
            lines = read_text_file(file).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.findings.error("label files that cannot be read", f"{file}: {error}")
            return []
        boxes = []
        seen: set[str] = set()
        for row, line in enumerate(lines, 1):
            text = " ".join(line.split())
            if not text:
                continue
            place = f"{file}:{row}: {text[:60]}"
            if text in seen:
                self.findings.oddity("label lines that occur twice (used once)", place)
                continue
            seen.add(text)
            box = self._box(text, size, place)
            if box is not None:
                boxes.append(box)
        return boxes

    def _box(self, text: str, size: tuple[int, int], place: str) -> dict[str, Any] | None:
        """Returns the box of a line; None, after reporting the error, for a line that is none."""
        try:
            label, *numbers = (float(word) for word in text.split())
        except ValueError:
            self.findings.error("label lines with words that are not numbers", place)
            return None
        if self.has_keypoints:
            numbers = numbers[:_BOX_NUMBERS]
        elif _may_be_tracked(text, numbers):
            self.findings.error(_TRACKED, place)
            return None
        problem = self._problem(label, numbers)
        if problem is not None:
            self.findings.error(problem, place)
            return None
        left, top, width, height = numbers if _is_box(numbers) else _box_around(numbers)
        if _is_box(numbers):
            left, top = left - width / 2, top - height / 2
        box = [left * size[0], top * size[1], width * size[0], height * size[1]]
        return {"category_id": int(label), "bbox": box, "iscrowd": 0}

    def _problem(self, label: float, numbers: list[float]) -> str | None:
        """Returns the kind of error of a line's numbers; None if they are right."""
        if not label.is_integer() or not 0 <= label < len(self.names):
            return f"label lines whose class is none of 0 to {len(self.names) - 1}"
        if not _is_box(numbers) and (len(numbers) < _POLYGON_NUMBERS or len(numbers) % 2):
            return "label lines that are neither a box nor a polygon"
        if not all(map(math.isfinite, numbers)):
            return "label lines with NaN or infinite numbers"
        if max(numbers) > _BEYOND:
            return "label lines with coordinates above 1 (they must be relative)"
        if _is_box(numbers) and min(numbers[2:]) < 0:
            return "label lines with a negative width or height"
        return None


def _is_box(numbers: list[float]) -> bool:
    """Whether the numbers after the class are those of a box."""
    return len(numbers) == _BOX_NUMBERS


def _may_be_tracked(text: str, numbers: list[float]) -> bool:
    """Whether a line of six numbers after the class may be a box, a confidence and a track id.

    As a polygon it would be a triangle. An id is written as a whole number from 1, and the box is
    on the image; a triangle whose last corner is at 1 is near that edge, where no such box fits.
    """
    if len(numbers) != _POLYGON_NUMBERS or not text.rsplit(maxsplit=1)[-1].isdecimal():
        return False
    *others, last = numbers
    if last < 1 or max(others) > _BEYOND:
        return False
    x, y, width, height = others[:_BOX_NUMBERS]
    edges = (x - width / 2, y - height / 2, 1 - x - width / 2, 1 - y - height / 2)
    return last > 1 or min(edges) >= -_BEYOND_TRACKED


def _box_around(polygon: list[float]) -> list[float]:
    """Returns left, top, width and height of the box around a polygon of x1, y1, x2, y2, ..."""
    left, top = min(polygon[::2]), min(polygon[1::2])
    return [left, top, max(polygon[::2]) - left, max(polygon[1::2]) - top]
