"""Pascal VOC: one XML file per image, with boxes as xmin, ymin, xmax, ymax in pixels.

Corners are used as they are written: VOC's own files count pixels from 1, most tools from 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from model.data.errors import DataError
from model.data.findings import Findings
from model.data.formats.base import (
    SPLIT_NAMES,
    EntryFinder,
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
        return path.is_dir() and any(files_of(place, "*.xml") for place in _places(path))

    def read(self, path: Path, split: str, findings: Findings) -> RawDataSet | None:
        """Reads the XML files of a split."""
        files = _xml_files(path, split)
        if files is None:
            return None
        if not files:
            raise DataError(f"{path}: the split {split!r} lists no XML file")
        folder = path if path.is_absolute() else Path.cwd() / path
        everywhere = {file: None for place in _places(path) for file in files_of(place, "*.xml")}
        names = _class_names([*everywhere, *(file for file in files if file not in everywhere)])
        return RawDataSet(_document(files, folder, names, findings), folder, path)


def _places(path: Path) -> list[Path]:
    """Returns the folders in which a data set may have XML files: of all images, of splits."""
    find = EntryFinder().find
    splits = [name for split in SPLIT_NAMES for name in split_names(split)]
    places = [path, path / "Annotations", find(path, "annotations")]
    places += [find(path, name, *sub) for name in splits for sub in ((), ("Annotations",))]
    return places


def _xml_files(path: Path, split: str) -> list[Path] | None:
    """Returns the XML files of a split; None if there is none of this name."""
    find = EntryFinder().find
    for name in split_names(split):
        for folder in (find(path, name), find(path, name, "Annotations")):
            if files := files_of(folder, "*.xml"):
                return files
    places = (path / "Annotations", find(path, "annotations"), path)
    folder = next((place for place in places if files_of(place, "*.xml")), path)
    lists = find(path, "ImageSets", "Main")
    listed = _listed_files(folder, lists, split_names(split))
    if listed is not None or split != "train":
        return listed
    # Images to train on that no list of their own names: VOC's trainval, or all, less the others.
    candidates = _listed_files(folder, lists, ("trainval",))
    if candidates is None:
        candidates = files_of(folder, "*.xml")
    others = [_listed_files(folder, lists, split_names(other)) for other in ("val", "test")]
    left_out = {file for other in others for file in other or ()}
    return [file for file in candidates if file not in left_out]


def _listed_files(folder: Path, lists: Path, names: Sequence[str]) -> list[Path] | None:
    """Returns the XML files that a list with one of the names has; None without such a list.

    Args:
        folder: of the XML files.
        lists: folder of the lists.
        names: of lists, without `.txt`.
    """
    find = EntryFinder().find
    for listed in (find(lists, f"{name}.txt") for name in names):
        if listed.is_file():
            return [_listed_file(folder, line) for line in _lines(listed) if line.strip()]
    return None


def _lines(file: Path) -> list[str]:
    try:
        return read_text_file(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a list of XML files: {error}") from error


def _listed_file(folder: Path, line: str) -> Path:
    """Returns the XML file of a line: a stem, which may have spaces, or a stem and a number."""
    whole = folder / f"{line.strip()}.xml"
    return whole if os.path.isfile(whole) else folder / f"{line.split(maxsplit=1)[0]}.xml"


def _class_names(files: Iterable[Path]) -> list[str]:
    """Returns the names of all objects, sorted; files that are not annotations have none."""
    roots = (_parse(file, Findings()) for file in files)
    return sorted(
        {
            name
            for root in roots
            if root is not None
            for entry in root.iter("object")
            if (name := _name_of(entry))
        }
    )


def _document(
    files: list[Path], folder: Path, names: list[str], findings: Findings
) -> dict[str, Any]:
    """Returns the COCO document of the XML files of a split.

    Args:
        files: of the split.
        folder: that the file names of the images are relative to.
        names: of the classes of all splits, so that a class has one id in all of them; the
            categories are those of this split.
        findings: gets the errors and oddities.
    """
    images: list[dict[str, Any]] = []
    found: list[tuple[int, str, list[float]]] = []
    for number, file in enumerate(files, 1):
        root = _parse(file, findings)
        if root is None:
            continue
        image = _image_of(root, file, findings)
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
    used = {name for _, name, _ in found}
    categories = [each for each in categories_of(names) if each["name"] in used]
    ids = {each["name"]: each["id"] for each in categories}
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
        "categories": categories,
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


def _image_of(root: ElementTree.Element, file: Path, findings: Findings) -> Path:
    """Returns the image of an XML file: the one with its stem, else the one that it names.

    Tools that copy or augment images often keep the `<filename>` of the original.
    """
    named = (root.findtext("filename") or "").strip().replace("\\", "/")
    places = (file.parent, file.parent.parent / "JPEGImages", file.parent.parent / "images")
    by_name = _first_file(places, (named, *spellings(named))) if named else None
    if by_name is not None and one_spelling(by_name.stem) == one_spelling(file.stem):
        return by_name
    stems = (file.stem, *spellings(file.stem))
    endings = [each for suffix in sorted(IMAGE_SUFFIXES) for each in (suffix, suffix.upper())]
    by_stem = _first_file(places, [stem + ending for stem in stems for ending in endings])
    if by_stem is not None and by_name is not None:
        findings.oddity(
            "XML files that name another image than the one with their own name (which is used)",
            f"{file}: {named}, not {by_stem.name}",
        )
    missing = named or f"{file.stem}.jpg"
    absent = next((place for place in places[1:] if place.is_dir()), file.parent) / missing
    return by_stem or by_name or absent


def _first_file(places: Iterable[Path], names: Sequence[str]) -> Path | None:
    """Returns the first file of these names in these folders."""
    return next(
        (
            place / name
            for place in places
            for name in names
            if os.path.isfile(place / name)  # Path.is_file raises for a name that is too long
        ),
        None,
    )


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
    name = _name_of(entry)
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


def _name_of(entry: ElementTree.Element) -> str:
    return one_spelling((entry.findtext("name") or "").strip())
