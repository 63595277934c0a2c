"""Compares a COCO document with its image files: missing files, sizes, boxes outside the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.document_checks import file_names, is_box, is_id
from model.data.errors import DataError
from model.data.findings import Findings
from model.data.image_files import ImageSize, read_image, read_size

_READERS = 8  # threads; the files may be on a slow network disk
_SCORED = 100  # detections of an image that COCO's AP counts: the best ones
_FOUND = 300  # queries and detections of a model on an image, at most, unless options set more
_TOLERANCE = 1.5  # pixels that boxes of real data sets reach beyond an image

Size = tuple[float, float]  # width, height in pixels


def check_image_files(
    images: Sequence[Mapping[str, Any]], folder: Path, findings: Findings
) -> dict[int, Size]:
    """Checks that each image file exists, is an image and has the size that the annotations say.

    Args:
        images: of the document; their ids and file names are known to be right.
        folder: that the file names are relative to.
        findings: gets the errors and oddities.

    Returns:
        The sizes of the readable images after EXIF rotation, by image id.

    Raises:
        DataError: if the folder does not exist, or has none of several images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    sizes: dict[int, Size] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        files = [folder / str(image["file_name"]) for image in images]
        if len(files) > 1 and not any(map(_is_there, files)):
            raise DataError(
                f"{folder} has none of the {len(files)} images that the annotations name, the "
                f"first is {images[0]['file_name']}: is it the right folder?"
            )
        read = readers.map(_size_or_error, files, map(_declared, images))
        for image, size in zip(images, read, strict=True):
            place = f"image {image['id']}: {folder / str(image['file_name'])}"
            if size is None:
                findings.error("image files that do not exist", place)
            elif isinstance(size, DataError):
                findings.error("image files that cannot be read", f"image {image['id']}: {size}")
            else:
                sizes[image["id"]] = (size.width, size.height)
                _compare_sizes(image, size, place, findings)
    return sizes


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # such as a name that is too long
        return False


def _size_or_error(file: Path, declared: tuple[object, object]) -> ImageSize | DataError | None:
    """Returns the size, the error of a file that cannot be read, or None if there is no file.

    Args:
        file: an image file.
        declared: width and height as the annotations say.
    """
    try:
        if not file.is_file():
            return None
        size = read_size(file)
        if None not in declared and declared != (size.width, size.height):
            return _decoded_size(file, size)  # what counts; the header's end may be unread
        return size
    except DataError as error:
        return error
    except OSError:  # such as a name that is too long
        return None


def _declared(image: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns width and height as the annotations say."""
    return image.get("width"), image.get("height")


def _decoded_size(file: Path, size: ImageSize) -> ImageSize:
    """Returns the size of the decoded image."""
    width, height = read_image(file).size
    swapped = size.sides_swapped ^ ((width, height) != (size.width, size.height))
    return ImageSize(width, height, turned=size.turned or swapped, sides_swapped=swapped)


def _compare_sizes(
    image: Mapping[str, Any], size: ImageSize, place: str, findings: Findings
) -> None:
    """Compares the declared size with that of the file."""
    declared = _declared(image)
    actual = (size.width, size.height)
    if None not in declared and declared != actual:
        described = f"{place} has {actual[0]} x {actual[1]} pixels, the annotations say "
        described += f"{declared[0]} x {declared[1]}"
        if size.turned and declared == actual[::-1]:
            findings.error(
                "images whose size in the annotations is that before the EXIF rotation (boxes must "
                "refer to the rotated image)",
                described,
            )
        else:
            findings.error(
                "images of another size than the annotations say (if the boxes are right, correct "
                "or remove width and height)",
                described,
            )
    elif size.turned and (None in declared or not size.sides_swapped or actual[0] == actual[1]):
        findings.oddity(
            "images rotated or mirrored by EXIF (boxes must refer to the result)", place
        )


@dataclass
class _BoxCounts:
    """Counts of the boxes with an area, by their place."""

    all: int = 0
    outside: int = 0  # wholly
    relative: int = 0  # all four numbers in 0..1


def check_box_counts(
    document: Mapping[str, Any], sizes: Mapping[Any, Size], findings: Findings
) -> None:
    """Reports images with more boxes than can be found, or than AP counts.

    Args:
        document: with images and annotations; malformed ones are skipped.
        sizes: width and height by the ids of the images that are used.
        findings: gets the oddities.
    """
    ids = (
        entry.get("image_id")
        for entry in document["annotations"]
        if isinstance(entry, dict) and not entry.get("iscrowd")
    )
    counts = Counter(image_id for image_id in ids if is_id(image_id) and image_id in sizes)
    files = file_names(document)
    for image_id, count in counts.items():
        place = f"image {image_id}: {files.get(image_id, '')} has {count}"
        if count > _SCORED:
            findings.oddity(
                f"images with more than {_SCORED} boxes (AP counts at most {_SCORED} detections of "
                "an image)",
                place,
            )
        if count > _FOUND:
            findings.oddity(
                f"images with more than {_FOUND} boxes (by default the model finds at most "
                f"{_FOUND} on an image; cut it into tiles)",
                place,
            )


def check_boxes(document: Mapping[str, Any], sizes: Mapping[Any, Size], findings: Findings) -> None:
    """Checks the places of boxes.

    Args:
        document: with images and annotations; malformed ones are skipped.
        sizes: width and height by image id; boxes of other images are not checked.
        findings: gets the errors and oddities.
    """
    counts = _BoxCounts()
    first_outside = first_relative = ""
    files = file_names(document)
    for number, annotation in enumerate(document["annotations"]):
        if not isinstance(annotation, dict) or not is_box(annotation.get("bbox")):
            continue
        image_id = annotation.get("image_id")
        size = sizes.get(image_id) if is_id(image_id) else None
        left, top, width, height = annotation["bbox"]
        if size is None or width <= 0 or height <= 0:
            continue
        place = f"annotations[{number}] (image {image_id}: {files.get(image_id, '')})"
        described = f"{place}: bbox is {annotation['bbox']}, the image {size[0]:g} x {size[1]:g}"
        counts.all += 1
        if max(left + width, top + height) <= 1 and min(left, top) >= 0 and min(size) > 1:
            counts.relative += 1
            first_relative = first_relative or described
        elif left >= size[0] or top >= size[1] or left + width <= 0 or top + height <= 0:
            counts.outside += 1
            first_outside = first_outside or described
            findings.oddity("boxes outside their image", described)
        elif (
            min(left, top) < -_TOLERANCE
            or left + width > size[0] + _TOLERANCE
            or top + height > size[1] + _TOLERANCE
        ):
            findings.oddity(
                "boxes that reach beyond their image (bbox is x, y, width, height)", described
            )
    if counts.all and counts.outside == counts.all:
        findings.error("all boxes are outside their images", first_outside, counts.all)
    if counts.all and counts.relative == counts.all:
        findings.error(
            "all boxes are within 0..1 (bbox must be in pixels)", first_relative, counts.all
        )
