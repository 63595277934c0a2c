"""Statistics of a data set for `lite-detr data check`: counts, box sizes, duplicates."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.data.data_sets import DataSet
from model.data.image_checks import Size

_SAME_BOX_IOU = 0.95
_MAX_PAIRS = 2000  # boxes of an image that are compared with one another
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ClassSurvey:
    """The boxes of one class.

    Attributes:
        name: of the class.
        boxes: their number, without crowds.
        images: with a box of the class.
        sides: shorter side in pixels of the image: 10th, 50th, 90th percentile; zeros without
            boxes.
    """

    name: str
    boxes: int
    images: int
    sides: tuple[float, float, float]


@dataclass(frozen=True)
class Survey:
    """The statistics of one split.

    Attributes:
        images: their number.
        empty_images: without a box.
        boxes: without crowds.
        crowds: boxes of groups, which are not trained on.
        most_boxes: of one image.
        image_sizes: most frequent (width, height) in pixels with their counts.
        classes: in category order.
        repeated_boxes: boxes that nearly cover another one of their class (IoU >= 0.95).
        first_repeated: image of the first of them; empty without any.
    """

    images: int
    empty_images: int
    boxes: int
    crowds: int
    most_boxes: int
    image_sizes: tuple[tuple[Size, int], ...]
    classes: tuple[ClassSurvey, ...]
    repeated_boxes: int
    first_repeated: str


def survey(truth: GroundTruth, sizes: Mapping[int, Size]) -> Survey:
    """Returns the statistics of a split.

    Args:
        truth: images and boxes.
        sizes: width and height of the images in pixels, by image id.
    """
    repeated = [(image.file_name, _repeated(image)) for image in truth.images]
    return Survey(
        images=len(truth.images),
        empty_images=sum(not image.boxes for image in truth.images),
        boxes=sum(truth.counts().values()),
        crowds=sum(box.crowd for image in truth.images for box in image.boxes),
        most_boxes=max((len(image.boxes) for image in truth.images), default=0),
        image_sizes=tuple(Counter(sizes.values()).most_common(3)),
        classes=tuple(_classes(truth)),
        repeated_boxes=sum(count for _, count in repeated),
        first_repeated=next((name for name, count in repeated if count), ""),
    )


def _classes(truth: GroundTruth) -> Iterable[ClassSurvey]:
    sides: dict[int, list[float]] = defaultdict(list)
    images: Counter[int] = Counter()
    for image in truth.images:
        boxes = [box for box in image.boxes if not box.crowd]
        images.update({box.category_id for box in boxes})
        for box in boxes:
            sides[box.category_id].append(min(box.xywh[2:]))
    for key, name in truth.categories.items():
        low, middle, high = (
            np.percentile(sides[key], (10, 50, 90)).tolist() if sides[key] else (0.0, 0.0, 0.0)
        )
        yield ClassSurvey(name, len(sides[key]), images[key], (low, middle, high))


def _repeated(image: ImageAnnotations) -> int:
    """Returns the number of boxes that nearly cover an earlier one of the same class."""
    by_class: dict[int, list[AnnotatedBox]] = defaultdict(list)
    for box in image.boxes:
        if not box.crowd:
            by_class[box.category_id].append(box)
    count = 0
    for boxes in by_class.values():
        corners = np.array([box.xyxy for box in boxes[:_MAX_PAIRS]])
        low = np.maximum(corners[:, None, :2], corners[None, :, :2])
        high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers near the largest float
            shared = np.clip(high - low, 0, None).prod(-1)
            areas = (corners[:, 2:] - corners[:, :2]).prod(-1)
            iou = shared / np.maximum(areas[:, None] + areas[None] - shared, 1e-9)
        count += int((np.tril(iou, -1) >= _SAME_BOX_IOU).any(1).sum())
    return count


def same_files(data_sets: Sequence[DataSet]) -> list[tuple[Path, Path]]:
    """Returns pairs of image files with the same content, within and between splits.

    Only files of the same number of bytes are read. A file is not compared with itself, under
    whatever path; see `shared_images`.
    """
    files = [data.folder / image.file_name for data in data_sets for image in data.truth.images]
    by_path: dict[str, Path] = {}
    for file in files:
        by_path.setdefault(os.path.abspath(file), file)
    by_bytes: dict[int, list[Path]] = defaultdict(list)
    for file in by_path.values():
        by_bytes[file.stat().st_size].append(file)
    pairs = []
    for candidates in by_bytes.values():
        first_of: dict[bytes, Path] = {}
        for file in candidates if len(candidates) > 1 else ():
            digest = _digest(file)
            if digest in first_of:
                pairs.append((first_of[digest], file))
            else:
                first_of[digest] = file
    return sorted(pairs)


def shared_images(first: DataSet, second: DataSet) -> list[str]:
    """Returns the file names of images of the second split whose file is also in the first."""
    files = {(first.folder / image.file_name).resolve() for image in first.truth.images}
    return [
        image.file_name
        for image in second.truth.images
        if (second.folder / image.file_name).resolve() in files
    ]


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
