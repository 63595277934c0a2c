"""What there is to find on photos: COCO-format annotations, as evaluation reads them.

First station of evaluation: JSON file -> `GroundTruth`, which `model.evaluation.evaluate` and
`model.evaluation.photo_rules` compare detections with. Training reads the same format through
`model.training.records`, which drops crowds and needs no ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.training.records import DataError


@dataclass(frozen=True)
class AnnotatedBox:
    """One object of a photo."""

    category_id: int
    xywh: tuple[float, float, float, float]  # left, top, width, height in pixels of the photo
    area: float  # square pixels, by which COCO calls it small, medium or large
    crowd: bool = False  # a group: COCO neither wants nor punishes detections on it

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of the photo."""
        left, top, width, height = self.xywh
        return left, top, left + width, top + height


@dataclass(frozen=True)
class AnnotatedPhoto:
    """One photo and what is on it; no boxes: a photo on which nothing is to be found."""

    image_id: int
    file_name: str  # below the folder of images
    boxes: tuple[AnnotatedBox, ...]


@dataclass(frozen=True)
class GroundTruth:
    """The photos of a set, in the order of its file, and the names of its categories."""

    photos: tuple[AnnotatedPhoto, ...]
    categories: Mapping[int, str]  # by category id, ids rising

    @classmethod
    def read(cls, path: Path, limit: int | None = None) -> GroundTruth:
        """Reads COCO-format JSON.

        Args:
            path: the file.
            limit: only its first photos.

        Returns:
            What it says.

        Raises:
            DataError: for a file that is absent or not in that format, or names no image.
        """
        try:
            document = json.loads(path.read_bytes())
            truth = cls.from_coco(document, limit)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not COCO-format JSON: {error!r}") from error
        if not truth.photos:
            raise DataError(f"{path} names no image")
        return truth

    @classmethod
    def from_coco(cls, document: Mapping[str, Any], limit: int | None = None) -> GroundTruth:
        """Takes what is needed from a COCO document; raises what a malformed one causes."""
        categories = {int(c["id"]): str(c["name"]) for c in document["categories"]}
        boxes: dict[int, list[AnnotatedBox]] = {}
        for annotation in document["annotations"]:
            left, top, width, height = (float(value) for value in annotation["bbox"])
            box = AnnotatedBox(
                category_id=int(annotation["category_id"]),
                xywh=(left, top, width, height),
                area=float(annotation.get("area", width * height)),
                crowd=bool(annotation.get("iscrowd", 0)),
            )
            if box.category_id not in categories:
                raise ValueError(f"an annotation has the unknown category_id {box.category_id}")
            boxes.setdefault(int(annotation["image_id"]), []).append(box)
        photos = tuple(
            AnnotatedPhoto(int(i["id"]), str(i["file_name"]), tuple(boxes.get(int(i["id"]), ())))
            for i in document["images"][:limit]
        )
        return cls(photos, {key: categories[key] for key in sorted(categories)})

    def to_coco(self) -> dict[str, Any]:
        """The set as a COCO document of its own, for a scorer to change as it likes."""
        annotations = [
            {
                "image_id": photo.image_id,
                "category_id": box.category_id,
                "bbox": list(box.xywh),
                "area": box.area,
                "iscrowd": int(box.crowd),
            }
            for photo in self.photos
            for box in photo.boxes
        ]
        return {
            "images": [{"id": p.image_id, "file_name": p.file_name} for p in self.photos],
            "annotations": [{"id": n, **a} for n, a in enumerate(annotations, 1)],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
        }

    def counts(self) -> Counter[int]:
        """How many boxes of each category id there are to find, crowds left out."""
        return Counter(b.category_id for p in self.photos for b in p.boxes if not b.crowd)

    def category_ids(self, labels: Sequence[str]) -> dict[int, int]:
        """The category id of each of a model's outputs, by equal names.

        Args:
            labels: the model's class names, by output.

        Returns:
            Category ids by output; outputs without a category are absent.

        Raises:
            DataError: where boxes are annotated of a class that the model does not have.
        """
        by_name = {name: key for key, name in self.categories.items()}
        found = {number: by_name[name] for number, name in enumerate(labels) if name in by_name}
        missing = [self.categories[k] for k in sorted(self.counts().keys() - set(found.values()))]
        if missing:
            raise DataError(f"the model has no class for the annotated categories {missing[:5]}")
        return found
