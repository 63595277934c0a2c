"""Where training images and their boxes come from: COCO JSON, a scene cache, or a generator.

First stage of the training data path: sources -> augment -> batches -> loop.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.data.annotations import AnnotatedBox, DataError, GroundTruth
from model.data.image_files import read_pixels
from model.data.input_files import read_regular_file
from model.labels import named_classes

LOG = logging.getLogger(__name__)
_MAX_INDEX_BYTES = 8 << 30

Pixels = npt.NDArray[np.uint8]  # [h, w, 3] RGB
Boxes = npt.NDArray[np.float32]  # [n, 4] xyxy in pixels
Labels = npt.NDArray[np.int64]  # [n]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its boxes and labels.

    Attributes:
        pixels: uint8 [h, w, 3] RGB.
        boxes: float32 [n, 4] xyxy in pixels.
        labels: int64 [n], class indices.
    """

    pixels: Pixels
    boxes: Boxes
    labels: Labels


class ImageSource(Protocol):
    """A list of annotated images that may grow between epochs."""

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Prepares for an epoch; `limit` restores the length that a saved run had in it."""

    def __len__(self) -> int:
        """Number of images since the last refresh."""

    def load(self, index: int) -> AnnotatedImage:
        """Reads one image; raises DataError if it cannot."""


@dataclass(frozen=True)
class Record:
    """An annotated image file, not yet read."""

    file: Path
    boxes: Boxes
    labels: Labels

    def load(self) -> AnnotatedImage:
        """Reads the file and clips the boxes to the image, without those that are outside.

        Raises:
            DataError: if the file cannot be read.
        """
        pixels = read_pixels(self.file)
        height, width = pixels.shape[:2]
        boxes = self.boxes.clip(0, np.array([width, height] * 2, np.float32))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return AnnotatedImage(pixels, boxes[inside], self.labels[inside])


class CacheSource:
    """Scenes on disk: `scenes.jsonl`, one line per image, which may grow while it is read.

    Args:
        folder: contains `scenes.jsonl` and the images that it lists.
        label_names: classes by index; lines may give indices or names.
    """

    def __init__(self, folder: Path, label_names: Sequence[str]) -> None:
        """Reads the index once."""
        self._folder = folder
        self._numbers = {name: number for number, name in enumerate(label_names)}
        self._records: list[Record] = []
        self.refresh(0)
        if not self._records:
            raise DataError(f"{folder / 'scenes.jsonl'} names no image yet")

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Reads the index again, skipping lines that are not whole JSON.

        Raises:
            DataError: if the index is missing or a whole line lacks a field.
        """
        index = self._folder / "scenes.jsonl"
        try:
            lines = read_regular_file(index, _MAX_INDEX_BYTES).split(b"\n")
        except OSError as error:
            raise DataError(f"{index}: {error.strerror}") from error
        records, broken = [], 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError:
                broken += 1
                continue
            records.append(self._record(fields, f"{index}:{number}"))
        if broken > 1:  # one is normal: the line being written now
            LOG.warning("%s: skipped %d unfinished lines", index, broken)
        self._records = records[:limit]

    def _record(self, fields: dict[str, Any], place: str) -> Record:
        try:
            labels = [
                self._numbers[label] if isinstance(label, str) else int(label)
                for label in fields["labels"]
            ]
            boxes = np.asarray(fields["boxes"], np.float32).reshape(-1, 4)
            file = self._folder / fields["file"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{place}: not a scene: {error!r}") from error
        if len(boxes) != len(labels):
            raise DataError(f"{place}: {len(boxes)} boxes but {len(labels)} labels")
        if not np.isfinite(boxes).all():
            raise DataError(f"{place}: not a scene: a box is not finite")
        unknown = [label for label in labels if not 0 <= label < len(self._numbers)]
        if unknown:
            raise DataError(f"{place}: label {unknown[0]} is none of {len(self._numbers)} classes")
        return Record(file, boxes, np.asarray(labels, np.int64))

    def __len__(self) -> int:
        """Number of images in the index."""
        return len(self._records)

    def load(self, index: int) -> AnnotatedImage:
        """Reads one image."""
        return self._records[index].load()


class GroundTruthSource:
    """The images of a ground truth, without crowds and empty boxes.

    Args:
        truth: the images and their boxes.
        images: folder that its `file_name`s are relative to.
        known_labels: names at their category ids. If the categories are exactly these, a class's
            index is its category id, as in published COCO models, from which a run may start;
            else the classes are the categories by ascending id.

    Attributes:
        label_names: classes by index.
        category_ids: their ids in the file, by index.
    """

    def __init__(self, truth: GroundTruth, images: Path, known_labels: Sequence[str] = ()) -> None:
        """Reads no image."""
        names = truth.categories
        if names == dict(named_classes(known_labels)):
            self.label_names, self.category_ids = (
                tuple(known_labels),
                tuple(range(len(known_labels))),
            )
        else:
            self.label_names, self.category_ids = tuple(names.values()), tuple(names)
        indices = {key: index for index, key in enumerate(self.category_ids)}
        self._records = [
            _record(images / image.file_name, image.boxes, indices) for image in truth.images
        ]

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Does nothing: the data does not grow."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self._records)

    def load(self, index: int) -> AnnotatedImage:
        """Reads one image."""
        return self._records[index].load()


class CocoSource(GroundTruthSource):
    """A COCO-format JSON file and its image folder; see `GroundTruthSource`.

    Args:
        annotations: the JSON file.
        images: folder that its `file_name`s are relative to.
        known_labels: see `GroundTruthSource`.
        report: called with a report of oddities in the data; None: they are not reported.

    Raises:
        DataError: if the file is not COCO-format JSON, lists no image or no box, or has errors;
            and if an image file is missing or of another size than the annotations say.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        known_labels: Sequence[str] = (),
        *,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Reads and checks the whole file and the headers of the images."""
        truth = GroundTruth.read(annotations, images=images, report=report)
        if not truth.counts():
            raise DataError(f"{annotations} has no box to learn from (crowds are left out)")
        super().__init__(truth, images, known_labels)


def _record(file: Path, boxes: Iterable[AnnotatedBox], indices: dict[int, int]) -> Record:
    kept = [box for box in boxes if not box.crowd and box.xywh[2] > 0 and box.xywh[3] > 0]
    corners = np.asarray([box.xyxy for box in kept], np.float32).reshape(-1, 4)
    return Record(file, corners, np.asarray([indices[box.category_id] for box in kept], np.int64))


class LiveSource:
    """Generated images, different ones in every epoch.

    Args:
        generate: returns the image of a number, the same image for the same number.
        scenes: images per epoch.
    """

    def __init__(self, generate: Callable[[int], AnnotatedImage], scenes: int) -> None:
        """Generates nothing yet."""
        self._generate = generate
        self._scenes = scenes
        self._epoch = 0

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Selects the images of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Images per epoch."""
        return self._scenes

    def load(self, index: int) -> AnnotatedImage:
        """Generates one image."""
        return self._generate(self._epoch * self._scenes + index)
