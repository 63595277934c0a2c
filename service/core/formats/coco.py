"""format=coco: all results as one COCO data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from model.labels import named_classes
from model.text import valid_text
from service.core.encoding import BOX_DECIMALS, FileResult, rounded_columns
from service.core.formats.output_format import (
    CocoDataSet,
    Encoded,
    EncodeInput,
    OutputFormat,
    Schema,
)
from service.core.formats.result_json import FailedFile, Score, file_item
from service.types import DetectResult

_MAX_IMAGE_ID = 2**53 - 1  # exact in every JSON reader
_MAX_DIGITS = 200  # of a file name; converting more digits takes long

ImageIdSource = Literal["annotations", "file_names", "places"]
CategoryIdSource = Literal["annotations", "training_data", "class_index"]

_IMAGE_IDS: dict[ImageIdSource, str] = {
    "annotations": "Image ids are those of the annotations.",
    "file_names": "Image ids are the numbers that the file names consist of.",
    "places": "Image ids are the places of the files, counted from 1, not ids of a data set.",
}
_CATEGORY_IDS: dict[CategoryIdSource, str] = {
    "annotations": "Category ids are those of the annotations.",
    "training_data": "Category ids are those of the model's training data.",
    "class_index": "Category ids are the model's class numbers, counted from 0.",
}


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
    """Which model the detections are from, and where the ids are from."""

    description: str
    image_ids: ImageIdSource
    category_ids: CategoryIdSource


class CocoAnswer(Schema):
    """A COCO data set: pycocotools loads it, and `loadRes` takes its `annotations`."""

    info: CocoInfo
    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]
    errors: list[CocoFailedFile] = Field([])


_EXAMPLE: dict[str, Any] = {
    "info": {
        "description": "Detections by lite-dino-codes 3f2a9c71d0be. "
        f"{_IMAGE_IDS['places']} {_CATEGORY_IDS['training_data']}",
        "image_ids": "places",
        "category_ids": "training_data",
    },
    "images": [{"id": 1, "file_name": "shelf.jpg", "width": 640, "height": 480}],
    "categories": [{"id": 1, "name": "qr_code"}, {"id": 2, "name": "data_matrix"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
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
    `area` and `iscrowd` that a data set needs. Category ids are those of the model's training
    data, or class numbers from 0 if the model file has none. If the names of all files are
    different numbers, such as `000000397133.jpg`, they are the image ids; otherwise images are
    numbered from 1 in the order of the files. `info` says which. Files without a result are in
    `errors`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    image_ids, image_id_source = _image_ids(job)
    names: Sequence[str | None] = [file.name for file in job.files]
    if job.data_set is not None:
        names = [valid_text(name) for name in job.data_set.file_names]
    for image_id, name, file in zip(image_ids, names, job.files, strict=True):
        result = file.result
        if result is None:
            errors.append({"image_id": image_id, **file_item(file)})
            continue
        size = {"width": result.width, "height": result.height}
        images.append({"id": image_id, "file_name": name or str(image_id), **size})
        for row in _annotations(result, image_id, job.data_set):
            annotations.append({"id": len(annotations) + 1, **row})
    categories, category_id_source = _categories(job)
    document: dict[str, Any] = {
        "info": {
            "description": f"{_model(job.files)} {_IMAGE_IDS[image_id_source]} "
            f"{_CATEGORY_IDS[category_id_source]}",
            "image_ids": image_id_source,
            "category_ids": category_id_source,
        },
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    if errors:
        document["errors"] = errors
    option = orjson.OPT_INDENT_2 if job.indent else None
    return Encoded(orjson.dumps(document, option=option), "application/json")


def _image_ids(job: EncodeInput) -> tuple[Sequence[int], ImageIdSource]:
    """Returns the image id of each file, and where the ids are from."""
    if job.data_set is not None:
        return job.data_set.image_ids, "annotations"
    stems = [PurePosixPath((file.name or "").replace("\\", "/")).stem for file in job.files]
    if stems and all(stem.isascii() and stem.isdecimal() for stem in stems):
        numbers = {int(stem): None for stem in stems if len(stem) <= _MAX_DIGITS}
        if len(numbers) == len(stems) and max(numbers) <= _MAX_IMAGE_ID:
            return tuple(numbers), "file_names"
    return range(1, len(job.files) + 1), "places"


def _categories(job: EncodeInput) -> tuple[list[dict[str, Any]], CategoryIdSource]:
    """Returns the categories of the document, and where their ids are from."""
    if job.data_set is not None:
        named = job.data_set.categories.items()
        return [{"id": number, "name": valid_text(name)} for number, name in named], "annotations"
    result = next((file.result for file in job.files if file.result is not None), None)
    labels = job.label_names if result is None else result.label_names
    ids = job.category_ids if result is None else result.category_ids
    classes = named_classes(labels)
    if ids is None:
        return [{"id": index, "name": name} for index, name in classes], "class_index"
    return [{"id": ids[index], "name": name} for index, name in classes], "training_data"


def _annotations(
    result: DetectResult, image_id: int, data_set: CocoDataSet | None
) -> Iterator[dict[str, Any]]:
    """Yields the detections of one image, without their annotation ids."""
    for score, class_id, box in zip(*rounded_columns(result.detections), strict=True):
        if data_set is None:
            ids = result.category_ids
            category_id = class_id if ids is None else ids[class_id]
        elif class_id in data_set.category_by_class:
            category_id = data_set.category_by_class[class_id]
        else:
            continue
        width = round(box[2] - box[0], BOX_DECIMALS)
        height = round(box[3] - box[1], BOX_DECIMALS)
        yield {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [box[0], box[1], width, height],
            "area": round(width * height, BOX_DECIMALS),
            "iscrowd": 0,
            "score": score,
        }


def _model(files: Sequence[FileResult]) -> str:
    """Returns a sentence with the name and version of the model."""
    for file in files:
        if file.result is not None:
            return f"Detections by {file.result.model_name} {file.result.model_version}."
    return "No detections."


COCO = OutputFormat(
    name="coco",
    description="a COCO data set",
    media_types=("application/json",),
    encode=encode_coco,
    schemas=(CocoAnswer,),
    examples={"format=coco": _EXAMPLE},
)
