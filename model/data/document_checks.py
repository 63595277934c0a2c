"""Checks a COCO document before it is used: ids, categories and the form of its entries.

`check_document` needs the JSON only; `model.data.image_checks` compares it with the image files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from model.data.errors import DataError
from model.data.findings import Findings
from model.data.input_files import one_spelling, read_regular_file, spellings
from model.data.root_categories import drop_root_categories
from model.images.formats import foreign_kind
from model.labels import NO_CLASS
from model.text import has_controls, valid_text

_LISTS = ("images", "annotations", "categories")
_MAX_ID = 2**63 - 1  # COCO's tools store ids as int64
_BBOX_NUMBERS = 4
_LONGEST_SHOWN = 60  # characters of a value in a report
_MAX_BYTES = 8 << 30  # the largest public data sets have a few GB
_HEAD_BYTES = 4096  # enough to recognise a file of another kind


def read_coco_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: for a file that is missing or of another kind, which the message names.
    """
    try:
        data = read_regular_file(path, _MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    try:
        return json.loads(data)
    except MemoryError as error:
        raise DataError(f"{path}: not enough memory to read the file") from error
    except (ValueError, RecursionError) as error:
        kind = foreign_kind(data[:_HEAD_BYTES])
        if kind is not None and not kind.startswith(("JSON", "text")):
            raise DataError(f"{path} is {kind}, not COCO-format JSON") from error
        raise DataError(f"{path}: not COCO-format JSON: {error}") from error


def read_document(path: Path) -> dict[str, Any]:
    """Reads a JSON file that has the three lists of a COCO document.

    Raises:
        DataError: as `read_coco_json`, and for a file without these lists.
    """
    document = read_coco_json(path)
    if isinstance(document, list):
        raise DataError(
            f"{path}: not COCO-format JSON: a list, as of COCO results; annotations are an object "
            "with the lists images, annotations and categories"
        )
    absent = [
        name
        for name in _LISTS
        if not isinstance(document, dict) or not isinstance(document.get(name), list)
    ]
    if absent:
        raise DataError(f"{path}: not COCO-format JSON: it has no list {absent[0]!r}")
    if not document["images"]:
        raise DataError(f"{path} names no image")
    return dict(document)


def check_document(document: dict[str, Any], findings: Findings) -> None:
    """Checks everything that the JSON itself shows.

    Args:
        document: as `read_document` returns it; categories that only group others are removed.
        findings: gets the errors and oddities.
    """
    drop_root_categories(document, findings)
    categories = _check_categories(document["categories"], findings)
    _check_images(document["images"], findings)
    files = file_names(document)
    used = _check_annotations(document["annotations"], files, categories, findings)
    for place, entry in _objects("categories", document["categories"], Findings()):
        if is_id(entry.get("id")) and entry["id"] not in used:
            findings.oddity("categories without a box", f"{place}: {_shown(entry.get('name'))}")


def file_names(document: Mapping[str, Any]) -> dict[Any, str]:
    """Returns the file names of the images by their ids, for messages."""
    images = (entry for entry in document["images"] if isinstance(entry, dict))
    return {
        entry["id"]: str(entry.get("file_name") or "no file_name")
        for entry in images
        if is_id(entry.get("id"))
    }


def use_names_of_files(document: Mapping[str, Any], folder: Path) -> None:
    """Replaces file names that some tools write by those that the files have in the folder.

    Tools of Windows write backslashes. Archives of macOS have letters with accents in parts (the
    Unicode form NFD), most tools write them whole (NFC). Label Studio exports images into the
    folder `images`, and writes their paths in its own: `../../data/media/upload/1/one.jpg`.

    Args:
        document: whose images are changed in place.
        folder: of the images; a name that is there as it is written stays.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in document["images"]:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and (
            "\\" in name or ".." in name or name.startswith("/") or not name.isascii()
        ):
            used = name_of_file(name, folder)
            if used is not None:
                found.setdefault(used, []).append(entry)
    for used, entries in found.items():
        if len({with_slashes(entry["file_name"]) for entry in entries}) > 1:
            continue  # it is open which of them has the file
        for entry in entries:
            entry["file_name"] = used


def name_of_file(name: str, folder: Path) -> str | None:
    """Returns the name that a file has in a folder; None if it is not there.

    Args:
        name: as a document has it.
        folder: that it may be relative to.
    """
    slashes = with_slashes(name)
    path = PurePosixPath(slashes)
    names = [name, slashes, *spellings(slashes)]
    if path.name and (path.is_absolute() or ".." in path.parts):
        names += [f"images/{path.name}", path.name]
    # Path.is_file raises for a name that is too long.
    return next((each for each in names if os.path.isfile(folder / each)), None)


def with_slashes(name: str) -> str:
    """Returns a path that may have backslashes with slashes."""
    return name.replace("\\", "/")


def usable_images(entries: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the images without errors of their own, except that an id may occur twice."""
    usable = []
    for entry in entries:
        alone = Findings()
        _check_images([entry], alone)
        if not alone.has_errors:
            usable.append(entry)
    return usable


def is_box(value: object) -> bool:
    """Whether a JSON value is four finite numbers, as `bbox` needs them."""
    return isinstance(value, list) and len(value) == _BBOX_NUMBERS and all(map(is_number, value))


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can be
        return False


def _objects(
    name: str, entries: Sequence[Any], findings: Findings
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the entries of a list with their places; other entries than objects are errors."""
    for number, entry in enumerate(entries):
        place = f"{name}[{number}]"
        if not isinstance(entry, dict):
            findings.error(f"{name} that are not JSON objects", f"{place} is {_shown(entry)}")
            continue
        own = entry.get("id")
        yield (place if own is None else f"{place} (id {_shown(own)})"), entry


def _check_categories(entries: Sequence[Any], findings: Findings) -> set[Any]:
    """Checks the categories; returns their ids."""
    ids: set[Any] = set()
    names: set[str] = set()
    for place, entry in _objects("categories", entries, findings):
        _take_id("categories", place, entry, ids, findings)
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            findings.error("categories without a name", f"{place}: name is {_shown(name)}")
            continue
        bare = name.strip()
        if bare == NO_CLASS:
            findings.error(
                f"categories with the reserved name {NO_CLASS!r}, which stands for no class", place
            )
        elif has_controls(name) or valid_text(name) != name:
            findings.error(
                "categories with control characters or lone surrogates in the name",
                f"{place}: name is {json.dumps(name)[:_LONGEST_SHOWN]}",
            )
        elif one_spelling(bare) in names:
            findings.error("categories with the name of another one", f"{place}: {_shown(name)}")
        elif name != bare:
            findings.oddity("names with spaces at an end", f"{place}: {_shown(name)}")
        names.add(one_spelling(bare))
    if not entries:
        findings.error("empty list of categories", "the data has no class")
    return ids


def _check_images(entries: Sequence[Any], findings: Findings) -> None:
    """Checks the images."""
    ids: set[Any] = set()
    files: set[str] = set()
    for place, entry in _objects("images", entries, findings):
        _take_id("images", place, entry, ids, findings)
        file = entry.get("file_name")
        if not isinstance(file, str) or not file or "\0" in file:
            findings.error("images without a file_name", f"{place}: file_name is {_shown(file)}")
        elif file in files:
            findings.oddity("images with the file of another one", f"{place}: {_shown(file)}")
        else:
            files.add(file)
        for side in ("width", "height"):
            value = entry.get(side)
            if value is not None and not (is_number(value) and value > 0):
                findings.error(
                    "images with an impossible size", f"{place}: {side} is {_shown(value)}"
                )


def _take_id(
    name: str, place: str, entry: Mapping[str, Any], ids: set[Any], findings: Findings
) -> None:
    """Checks the id of an image or a category and adds it to `ids`."""
    value = entry.get("id")
    if not is_id(value):
        findings.error(f"{name} whose id is not an integer", f"{place}: id is {_shown(value)}")
    elif value in ids:
        findings.error(f"{name} with the id of another one", f"{place}")
    else:
        ids.add(value)


def _check_annotations(
    entries: Sequence[Any], files: Mapping[Any, str], categories: set[Any], findings: Findings
) -> set[Any]:
    """Checks the annotations; returns the ids of the categories that have a box.

    Args:
        entries: the annotations.
        files: file names of the images by id.
        categories: ids of the categories.
        findings: gets the errors and oddities.
    """
    ids: set[Any] = set()
    used: set[Any] = set()
    for place, entry in _objects("annotations", entries, findings):
        own = entry.get("id")
        if own is not None:
            _take_annotation_id(place, own, ids, findings)
        _check_reference(place, entry, "image_id", files.keys(), findings)
        # The formats without ids of their own name images by file.
        image_id = entry.get("image_id")
        is_known = is_id(image_id) and image_id in files
        full_place = f"{place} of {files[image_id]}" if is_known else place
        _check_reference(full_place, entry, "category_id", categories, findings)
        _check_box(full_place, entry, findings)
        category = entry.get("category_id")
        if is_id(category) and not entry.get("iscrowd"):
            used.add(category)
    return used


def _take_annotation_id(place: str, value: Any, ids: set[Any], findings: Findings) -> None:
    """Checks the id of an annotation, which only other COCO tools use, and adds it to `ids`."""
    if not is_id(value):
        findings.oddity("annotations whose id is not an integer", place)
        return
    if value in ids:
        findings.error("annotations with the id of another one, which COCO's tools mix up", place)
    if value == 0:
        findings.oddity("annotations with the id 0, which pycocotools counts as never found", place)
    ids.add(value)


def _check_reference(
    place: str, entry: Mapping[str, Any], field: str, known: Container[Any], findings: Findings
) -> None:
    """Checks that an annotation's `image_id` or `category_id` is that of an entry."""
    value = entry.get(field)
    what = field.removesuffix("_id")
    if not is_id(value):
        findings.error(
            f"annotations whose {field} is not an integer", f"{place}: {field} is {_shown(value)}"
        )
    elif value not in known:
        findings.error(
            f"annotations whose {field} no {what} has", f"{place}: {field} is {_shown(value)}"
        )
    elif type(value) is float:
        findings.oddity(f"annotations whose {field} is written with a decimal point", place)


def _check_box(place: str, entry: Mapping[str, Any], findings: Findings) -> None:
    """Checks `bbox`, `area` and `iscrowd` of an annotation, without regard to its image."""
    box = entry.get("bbox")
    if box is None:
        findings.error("annotations without bbox: add x, y, width, height, or remove them", place)
    elif not is_box(box):
        findings.error(
            "annotations whose bbox is not four numbers x, y, width, height",
            f"{place}: bbox is {_shown(box)}",
        )
    elif box[2] < 0 or box[3] < 0:
        findings.error(
            "annotations whose bbox has a negative width or height",
            f"{place}: bbox is {_shown(box)}",
        )
    elif box[2] == 0 or box[3] == 0:
        findings.oddity("boxes without an area", f"{place}: bbox is {_shown(box)}")
    area = entry.get("area")
    if area is not None and not (is_number(area) and area >= 0):
        findings.error("annotations with an impossible area", f"{place}: area is {_shown(area)}")
    crowd = entry.get("iscrowd")
    if crowd is not None and crowd not in (0, 1):
        findings.error(
            "annotations whose iscrowd is neither 0 nor 1", f"{place}: iscrowd is {_shown(crowd)}"
        )


def is_id(value: object) -> bool:
    """Whether this is an integer; 1.0 counts, as COCO's tools take it for 1."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) <= _MAX_ID
    return type(value) is int and abs(value) <= _MAX_ID


def _shown(value: object) -> str:
    """Returns a JSON value, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
