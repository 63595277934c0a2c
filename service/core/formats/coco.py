"""format=coco: all results as one COCO data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from pydantic import Field

from model.detections import Detections
from model.labels import named_classes
from service.core.encoding import BOX_DECIMALS, FileResult, rounded_columns
from service.core.formats.output_format import Encoded, EncodeInput, OutputFormat, Schema
from service.core.formats.result_json import FailedFile, Score, file_item


class CocoImage(Schema):
    """An image of a COCO data set."""

    id: int
    file_name: str
    width: int
    height: int


class CocoCategory(Schema):
    """A class of a COCO data set."""

    id: int
    name: str


class CocoAnnotation(Schema):
    """A detection as COCO writes it; `bbox` is x, y, width, height."""

    id: int
    image_id: int
    category_id: int
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    area: float
    iscrowd: int
    score: Score


class CocoFailedFile(FailedFile):
    """A file of several that has no result."""

    image_id: int


class CocoInfo(Schema):
    """Which model the detections are from."""

    description: str


class CocoAnswer(Schema):
    """A COCO data set: pycocotools loads it, and `loadRes` takes its `annotations`."""

    info: CocoInfo
    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]
    errors: list[CocoFailedFile] = Field([])


_EXAMPLE: dict[str, Any] = {
    "info": {"description": "Detections by lite-dino-codes 3f2a9c71d0be"},
    "images": [{"id": 1, "file_name": "shelf.jpg", "width": 640, "height": 480}],
    "categories": [{"id": 0, "name": "qr_code"}, {"id": 1, "name": "data_matrix"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 0,
            "bbox": [120.25, 88.5, 147.75, 151.25],
            "area": 22347.19,
            "iscrowd": 0,
            "score": 0.9731,
        }
    ],
}


def encode_coco(job: EncodeInput) -> Encoded:
    """All results as one COCO data set.

    `COCO(path)` of pycocotools loads the whole document, and `COCO.loadRes` takes its
    `annotations`: `{image_id, category_id, bbox: [x, y, width, height], score}` plus the `id`,
    `area` and `iscrowd` that a data set needs. Images are numbered from 1 in the order of the
    files; category ids are the model's class ids. Files without a result are in `errors`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for image_id, file in enumerate(job.files, start=1):
        if file.result is None:
            errors.append({"image_id": image_id, **file_item(file)})
            continue
        result = file.result
        images.append(
            {
                "id": image_id,
                "file_name": file.name or str(image_id),
                "width": result.width,
                "height": result.height,
            }
        )
        annotations += _annotations(result.detections, image_id, len(annotations) + 1)
    results = [file.result for file in job.files if file.result is not None]
    labels = results[0].label_names if results else job.label_names
    document: dict[str, Any] = {
        "info": _info(job.files),
        "images": images,
        "categories": [{"id": class_id, "name": name} for class_id, name in named_classes(labels)],
        "annotations": annotations,
    }
    if errors:
        document["errors"] = errors
    option = orjson.OPT_INDENT_2 if job.indent else None
    return Encoded(orjson.dumps(document, option=option), "application/json")


def _annotations(detections: Detections, image_id: int, first_id: int) -> list[dict[str, Any]]:
    annotations = []
    columns = zip(*rounded_columns(detections), strict=True)
    for annotation_id, (score, class_id, box) in enumerate(columns, start=first_id):
        width = round(box[2] - box[0], BOX_DECIMALS)
        height = round(box[3] - box[1], BOX_DECIMALS)
        annotations.append(
            {
                "id": annotation_id,
                "image_id": image_id,
                "category_id": class_id,
                "bbox": [box[0], box[1], width, height],
                "area": round(width * height, BOX_DECIMALS),
                "iscrowd": 0,
                "score": score,
            }
        )
    return annotations


def _info(files: Sequence[FileResult]) -> dict[str, str]:
    for file in files:
        if file.result is not None:
            model = f"{file.result.model_name} {file.result.model_version}"
            return {"description": f"Detections by {model}"}
    return {"description": "No detections"}


COCO = OutputFormat(
    name="coco",
    description="a COCO data set",
    media_types=("application/json",),
    encode=encode_coco,
    schemas=(CocoAnswer,),
    examples={"format=coco": _EXAMPLE},
)
