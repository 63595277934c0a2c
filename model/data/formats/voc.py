"""Pascal VOC: one XML file per image, with boxes as xmin, ymin, xmax, ymax in pixels.

Corners are used as they are written: VOC's own files count pixels from 1, most tools from 0.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from model.data.errors import DataError
from model.data.findings import Findings
from model.data.formats.base import (
    RawDataSet,
    categories_of,
    common_folder,
    files_of,
    split_names,
)
from model.data.input_files import (
    TEXT_BYTES,
    one_spelling,
    read_regular_file,
    read_text_file,
    spellings,
)
from model.images.formats import IMAGE_SUFFIXES

_WHOLE = re.compile(r"[0-9]{1,9}")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocFormat:
    """A folder with XML files: next to the images, or in Annotations/ beside JPEGImages/."""

    name = "Pascal VOC"
    layout = "Annotations/*.xml and JPEGImages/, or train/*.xml next to the images"

    def recognises(self, path: Path) -> bool:
        """Whether the path is a folder with XML files in one of these places."""
        if not path.is_dir():
            return False
        splits = [name for split in ("train", "val", "test") for name in split_names(split)]
        places = [path, path / "Annotations", path / "annotations"]
        places += [path / name / sub for name in splits for sub in ("", "Annotations")]
        return any(files_of(place, "*.xml") for place in places)

    def read(self, path: Path, split: str, findings: Findings) -> RawDataSet | None:
        """Reads the XML files of a split."""
        files = _xml_files(path, split)
        if files is None:
            return None
        if not files:
            raise DataError(f"{path}: the split {split!r} lists no XML file")
        folder = path if path.is_absolute() else Path.cwd() / path
        return RawDataSet(_document(files, folder, findings), folder, path)


def _xml_files(path: Path, split: str) -> list[Path] | None:
    """Returns the XML files of a split; None if there is none of this name."""
    for name in split_names(split):
        for folder in (path / name, path / name / "Annotations"):
            if files := files_of(folder, "*.xml"):
                return files
    places = (path / "Annotations", path / "annotations", path)
    folder = next((place for place in places if files_of(place, "*.xml")), path)
    for name in split_names(split):
        listed = path / "ImageSets" / "Main" / f"{name}.txt"
        if listed.is_file():
            return [_listed_file(folder, line) for line in _lines(listed) if line.strip()]
    return files_of(folder, "*.xml") if split == "train" else None


def _lines(file: Path) -> list[str]:
    try:
        return read_text_file(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a list of XML files: {error}") from error


def _listed_file(folder: Path, line: str) -> Path:
    """Returns the XML file of a line: a stem, which may have spaces, or a stem and a number."""
    whole = folder / f"{line.strip()}.xml"
    return whole if os.path.isfile(whole) else folder / f"{line.split(maxsplit=1)[0]}.xml"


def _document(files: list[Path], folder: Path, findings: Findings) -> dict[str, Any]:
    """Returns the COCO document of XML files; the classes are sorted by name."""
    images: list[dict[str, Any]] = []
    found: list[tuple[int, str, list[float]]] = []
    for number, file in enumerate(files, 1):
        root = _parse(file, findings)
        if root is None:
            continue
        image = _image_of(root, file)
        images.append({"id": number, "file_name": _relative(image, folder), **_size(root)})
        for entry in root.iter("object"):
            name, corners = _object(entry, file, findings)
            if corners is not None:
                found.append((number, name, corners))
    if not images:
        folder = common_folder(files)
        if findings.has_errors:
            raise DataError(findings.report(folder))
        raise DataError(f"{folder}: no XML file describes an image")
    names = sorted({name for _, name, _ in found})
    ids = {name: number for number, name in enumerate(names, 1)}
    return {
        "images": images,
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": ids[name],
                "bbox": [left, top, right - left, bottom - top],
            }
            for number, (image_id, name, (left, top, right, bottom)) in enumerate(found, 1)
        ],
        "categories": categories_of(names),
    }


def _parse(file: Path, findings: Findings) -> ElementTree.Element | None:
    """Parses an XML file; None, after reporting the error, for any other file."""
    try:
        data = read_regular_file(file, TEXT_BYTES)
    except OSError as error:
        findings.error("XML files that cannot be read", f"{file}: {error.strerror}")
        return None
    if b"<!ENTITY" in data:  # could expand without end
        findings.error("XML files with entities", str(file))
        return None
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also wrong encodings
        findings.error("XML files that cannot be parsed", f"{file}: {error}")
        return None
    if root.tag != "annotation":
        findings.error("XML files that are not VOC annotations", f"{file}: <{root.tag}>")
        return None
    return root


def _image_of(root: ElementTree.Element, file: Path) -> Path:
    """Returns the image of an XML file: the named file, or one with the stem of the XML file."""
    named = (root.findtext("filename") or "").strip().replace("\\", "/")
    places = (file.parent, file.parent.parent / "JPEGImages", file.parent.parent / "images")
    for place in places:
        for name in (named, *spellings(named)):
            if name and os.path.isfile(place / name):  # Path.is_file raises for a name too long
                return place / name
    for place in places:
        for suffix in sorted(IMAGE_SUFFIXES):
            for ending in (suffix, suffix.upper()):
                if (place / f"{file.stem}{ending}").is_file():
                    return place / f"{file.stem}{ending}"
    missing = named or f"{file.stem}.jpg"
    return next((place / missing for place in places[1:] if place.is_dir()), file.parent / missing)


def _relative(image: Path, folder: Path) -> str:
    image = image if image.is_absolute() else Path.cwd() / image
    return str(image.relative_to(folder)) if image.is_relative_to(folder) else str(image)


def _size(root: ElementTree.Element) -> dict[str, int]:
    """Returns the declared size; nothing if it is missing or 0, as some tools write it."""
    values = {}
    for side in ("width", "height"):
        text = (root.findtext(f"size/{side}") or "").strip()
        if _WHOLE.fullmatch(text) and int(text) > 0:
            values[side] = int(text)
    return values if len(values) == 2 else {}  # noqa: PLR2004 - both or none


def _object(
    entry: ElementTree.Element, file: Path, findings: Findings
) -> tuple[str, list[float] | None]:
    """Returns class and corners of an object; no corners, after reporting, for a malformed one."""
    name = one_spelling((entry.findtext("name") or "").strip())
    if not name:
        findings.error("objects without a name", str(file))
        return name, None
    try:
        corners = [float((entry.findtext(f"bndbox/{side}") or "").strip()) for side in _CORNERS]
    except ValueError:
        findings.error("objects without four numbers in bndbox", f"{file}: {name}")
        return name, None
    if corners[2] < corners[0] or corners[3] < corners[1]:
        findings.error("objects whose bndbox has max below min", f"{file}: {name} {corners}")
        return name, None
    return name, corners
