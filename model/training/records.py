"""Where the training pictures and their boxes come from: COCO JSON, a generator's cache, or live.

First station of the training data's path: records -> augment -> data (batches) -> loop.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    import cv2
except ImportError:  # Pillow reads the same files, more slowly
    cv2 = None  # type: ignore[assignment]

_HAS_CV2 = cv2 is not None

LOG = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]  # [h, w, 3] RGB
Boxes = npt.NDArray[np.float32]  # [n, 4] xyxy in pixels
Labels = npt.NDArray[np.int64]  # [n]


class DataError(ValueError):
    """Training data that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Picture:
    """One annotated image.

    Attributes:
        pixels: uint8 [h, w, 3] RGB.
        boxes: float32 [n, 4] xyxy in pixels.
        labels: int64 [n], class indices.
    """

    pixels: Pixels
    boxes: Boxes
    labels: Labels


class PictureSource(Protocol):
    """A list of pictures that may grow between epochs."""

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Gets ready for an epoch; `limit` restores the length that a saved run saw in it."""

    def __len__(self) -> int:
        """How many pictures there are since the last refresh."""

    def load(self, index: int) -> Picture:
        """Reads one picture; raises DataError if it cannot."""


@dataclass(frozen=True)
class Record:
    """An annotated image file, not yet read."""

    file: Path
    boxes: Boxes
    labels: Labels


class CacheSource:
    """The generator's cache: `scenes.jsonl`, one line an image, growing while it is read.

    Args:
        folder: holds `scenes.jsonl` and the images that it names.
        label_names: classes by index; lines may give indices or names.
    """

    def __init__(self, folder: Path, label_names: Sequence[str]) -> None:
        """Reads the index once."""
        self._folder = folder
        self._numbers = {name: number for number, name in enumerate(label_names)}
        self._records: list[Record] = []
        self.refresh(0)
        if not self._records:
            raise DataError(f"{folder / 'scenes.jsonl'} names no picture yet")

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Reads the index again. A line that a killed writer left unfinished is skipped.

        Raises:
            DataError: if the index is absent or a whole line lacks a field.
        """
        index = self._folder / "scenes.jsonl"
        try:
            lines = index.read_bytes().split(b"\n")
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
        return Record(file, boxes, np.asarray(labels, np.int64))

    def __len__(self) -> int:
        """Pictures in the index."""
        return len(self._records)

    def load(self, index: int) -> Picture:
        """Reads one picture."""
        return _load(self._records[index])


class CocoSource:
    """A COCO-format JSON with its image folder; crowds are left out.

    Args:
        annotations: the JSON file.
        images: folder that its `file_name`s start from.
        known_labels: classes by index. They are the model's if each category's name stands in
            them at its id (COCO itself); else classes are the categories by ascending id.

    Attributes:
        label_names: classes by index.

    Raises:
        DataError: if the file is no such JSON, or names no image.
    """

    def __init__(self, annotations: Path, images: Path, known_labels: Sequence[str] = ()) -> None:
        """Reads the whole file."""
        try:
            document = json.loads(annotations.read_bytes())
            categories = {int(c["id"]): str(c["name"]) for c in document["categories"]}
            ids = sorted(categories)
            if all(key < len(known_labels) and known_labels[key] == categories[key] for key in ids):
                self.label_names, indices = tuple(known_labels), {key: key for key in ids}
            else:
                self.label_names = tuple(categories[key] for key in ids)
                indices = {key: index for index, key in enumerate(ids)}
            self._records = self._read(document, images, indices)
        except OSError as error:
            raise DataError(f"{annotations}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{annotations}: not COCO-format JSON: {error!r}") from error
        if not self._records:
            raise DataError(f"{annotations} names no image")

    @staticmethod
    def _read(document: dict[str, Any], images: Path, indices: dict[int, int]) -> list[Record]:
        by_image: dict[int, list[tuple[list[float], int]]] = {}
        for annotation in document.get("annotations", ()):
            left, top, width, height = annotation["bbox"]
            if annotation.get("iscrowd") or width <= 0 or height <= 0:
                continue
            corners = [left, top, left + width, top + height]
            label = indices[int(annotation["category_id"])]
            by_image.setdefault(annotation["image_id"], []).append((corners, label))
        records = []
        for image in document["images"]:
            rows = by_image.get(image["id"], [])
            boxes = np.asarray([row[0] for row in rows], np.float32).reshape(-1, 4)
            labels = np.asarray([row[1] for row in rows], np.int64)
            records.append(Record(images / image["file_name"], boxes, labels))
        return records

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Nothing: the file does not grow."""

    def __len__(self) -> int:
        """Images in the file."""
        return len(self._records)

    def load(self, index: int) -> Picture:
        """Reads one picture."""
        return _load(self._records[index])


class LiveSource:
    """Pictures drawn when they are asked for, never the same twice.

    Args:
        draw: makes the picture of a number; the same number gives the same picture.
        scenes: pictures an epoch.
    """

    def __init__(self, draw: Callable[[int], Picture], scenes: int) -> None:
        """Draws nothing yet."""
        self._draw = draw
        self._scenes = scenes
        self._epoch = 0

    def refresh(self, epoch: int, limit: int | None = None) -> None:
        """Moves on to the epoch's own pictures."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Pictures an epoch."""
        return self._scenes

    def load(self, index: int) -> Picture:
        """Draws one picture."""
        return self._draw(self._epoch * self._scenes + index)


def _load(record: Record) -> Picture:
    return Picture(read_pixels(record.file), record.boxes, record.labels)


def read_pixels(file: Path) -> Pixels:
    """Reads an image file as uint8 [h, w, 3] RGB.

    Raises:
        DataError: if it is absent or no picture.
    """
    if _HAS_CV2:
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"{file} cannot be read as a picture")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8)
    except OSError as error:
        raise DataError(f"{file} cannot be read as a picture: {error}") from error
