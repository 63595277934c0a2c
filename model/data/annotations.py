"""COCO-format annotations: the ground truth of a data set, for training and evaluation.

JSON file -> `GroundTruth`. Evaluation compares detections with it; `model.training.sources` turns
it into training images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.document_checks import (
    check_document,
    read_document,
    usable_images,
    use_names_of_files,
)
from model.data.errors import DataError
from model.data.findings import Findings
from model.data.image_checks import Size, check_box_counts, check_boxes, check_image_files
from model.data.input_files import one_spelling

__all__ = ["AnnotatedBox", "DataError", "GroundTruth", "ImageAnnotations"]


@dataclass(frozen=True)
class AnnotatedBox:
    """One annotated object of an image."""

    category_id: int
    xywh: tuple[float, float, float, float]  # left, top, width, height in pixels of the image
    area: float  # square pixels, by which COCO calls it small, medium or large
    crowd: bool = False  # a group: COCO neither requires nor penalises detections on it

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of the image."""
        left, top, width, height = self.xywh
        return left, top, left + width, top + height


@dataclass(frozen=True)
class ImageAnnotations:
    """The boxes of one image; none where nothing is to be found on it."""

    image_id: int
    file_name: str  # relative to the folder of images
    boxes: tuple[AnnotatedBox, ...]


@dataclass(frozen=True)
class GroundTruth:
    """The images of a data set, in the order of its file, and the names of its categories."""

    images: tuple[ImageAnnotations, ...]
    categories: Mapping[int, str]  # by category id, in ascending order

    @classmethod
    def read(
        cls,
        path: Path,
        limit: int | None = None,
        *,
        images: Path | None = None,
        report: Callable[[str], None] | None = None,
    ) -> GroundTruth:
        """Reads and checks COCO-format JSON.

        Args:
            path: the file.
            limit: the number of images to keep, from the first; None keeps all.
            images: the folder of the image files, which are checked too: whether they exist, and
                their sizes. None: they are not.
            report: called with a report of oddities, if there are any.

        Raises:
            DataError: for a file that is missing or not in that format, or lists no image; and
                for errors in it, with a report of each kind and the first of each.
        """
        document = read_document(path)
        findings = Findings()
        check_document(document, findings)
        check_images_and_boxes(document, limit, images, findings)
        if findings.has_errors:
            raise DataError(findings.report(path))
        if findings.has_oddities and report is not None:
            report(findings.report(path))
        return cls.from_coco(document, limit)

    @classmethod
    def from_coco(cls, document: Mapping[str, Any], limit: int | None = None) -> GroundTruth:
        """Parses a COCO document.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: for a malformed document.
        """
        categories = {int(c["id"]): one_spelling(str(c["name"])) for c in document["categories"]}
        boxes: dict[int, list[AnnotatedBox]] = {}
        for annotation in document["annotations"]:
            left, top, width, height = (float(value) for value in annotation["bbox"])
            area = annotation.get("area")
            box = AnnotatedBox(
                category_id=int(annotation["category_id"]),
                xywh=(left, top, width, height),
                area=width * height if area is None else float(area),
                crowd=bool(annotation.get("iscrowd")),
            )
            if box.category_id not in categories:
                raise ValueError(f"an annotation has the unknown category_id {box.category_id}")
            boxes.setdefault(int(annotation["image_id"]), []).append(box)
        images = tuple(
            ImageAnnotations(int(i["id"]), str(i["file_name"]), tuple(boxes.get(int(i["id"]), ())))
            for i in document["images"][:limit]
        )
        return cls(images, {key: categories[key] for key in sorted(categories)})

    def to_coco(self) -> dict[str, Any]:
        """Returns the set as a new COCO document, which the caller may modify."""
        annotations = [
            {
                "image_id": image.image_id,
                "category_id": box.category_id,
                "bbox": list(box.xywh),
                "area": box.area,
                "iscrowd": int(box.crowd),
            }
            for image in self.images
            for box in image.boxes
        ]
        return {
            "images": [{"id": i.image_id, "file_name": i.file_name} for i in self.images],
            "annotations": [{"id": n, **a} for n, a in enumerate(annotations, 1)],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
        }

    def counts(self) -> Counter[int]:
        """The number of boxes of each category id, without crowds."""
        return Counter(b.category_id for i in self.images for b in i.boxes if not b.crowd)

    def category_ids(self, labels: Sequence[str]) -> dict[int, int]:
        """Maps each of a model's outputs to the category id of the same name.

        Args:
            labels: the model's class names, by output.

        Returns:
            Category ids by output; outputs without a category are left out.

        Raises:
            DataError: where boxes are annotated with a class that the model does not have.
        """
        by_name = {name: key for key, name in self.categories.items()}
        found = {number: by_name[name] for number, name in enumerate(labels) if name in by_name}
        missing = [self.categories[k] for k in sorted(self.counts().keys() - set(found.values()))]
        if missing:
            raise DataError(f"the model has no class for the annotated categories {missing[:5]}")
        return found


def check_images_and_boxes(
    document: Mapping[str, Any], limit: int | None, folder: Path | None, findings: Findings
) -> dict[int, Size]:
    """Checks the image files, if their folder is given, and the places of the boxes.

    Args:
        document: entries with errors of their own are skipped. File names that some tools write
            are replaced in place by those that the files have.
        limit: the number of images that are used.
        folder: of the image files.
        findings: gets the errors and oddities.

    Returns:
        Width and height of the images in pixels, as far as they are known, by image id.
    """
    if folder is not None:
        use_names_of_files(document, folder)
    used = usable_images(document["images"][:limit])
    sizes: dict[int, Size] = {
        image["id"]: (image["width"], image["height"])
        for image in used
        if image.get("width") and image.get("height")
    }
    if folder is not None:
        sizes |= check_image_files(used, folder, findings)
    check_boxes(document, sizes, findings)
    check_box_counts(document, sizes, findings)
    return sizes
