"""An answer -> JSON bytes: the last stage, shared by the REST adapter and the offline command.

Plain columns go straight to orjson: validating models would cost ten times the encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson

from model.detections import Detections
from model.labels import NO_CLASS
from service.types import DetectResult

_SCORE_DECIMALS = 4
_BOX_DECIMALS = 2  # of a pixel


@dataclass(frozen=True)
class ItemError:
    """Why one file of several has no answer."""

    code: str  # stable, for programs
    title: str  # of the kind of error, for people
    detail: str  # of this one, for people
    status: int | None = None  # that the file would have got alone; None away from HTTP
    retry_after_s: int | None = None  # when trying again makes sense


@dataclass(frozen=True)
class FileResult:
    """What became of one file: exactly one of `result` and `error` is set."""

    name: str | None  # as the client called it
    result: DetectResult | None = None
    error: ItemError | None = None


def encode_result(result: DetectResult) -> bytes:
    """One answer as a JSON object."""
    return orjson.dumps(_answer(result))


def encode_results(outcomes: Sequence[FileResult], request_id: str) -> bytes:
    """Answers for several files: `{"results": [...], "request_id": ...}`, in the files' order."""
    results = [_item(outcome) for outcome in outcomes]
    return orjson.dumps({"results": results, "request_id": request_id})


def encode_result_list(outcomes: Sequence[FileResult], *, indent: bool = False) -> bytes:
    """Answers for several files as a bare JSON array, in the files' order."""
    items = [_item(outcome) for outcome in outcomes]
    return orjson.dumps(items, option=orjson.OPT_INDENT_2 if indent else None)


def encode_coco(
    outcomes: Sequence[FileResult], label_names: Sequence[str], *, indent: bool = False
) -> bytes:
    """Answers as one COCO data set.

    The object loads as it is in pycocotools (`COCO(path)`), and its `annotations` are what
    `COCO.loadRes` takes: `{image_id, category_id, bbox: [x, y, width, height], score}` and the
    `id`, `area` and `iscrowd` that a data set needs. Images are numbered from 1 in the files'
    order; category ids are the model's class ids. Files without an answer stand in `errors`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for image_id, outcome in enumerate(outcomes, start=1):
        if outcome.result is None:
            errors.append({"image_id": image_id, **_item(outcome)})
            continue
        result = outcome.result
        images.append(
            {
                "id": image_id,
                "file_name": outcome.name or str(image_id),
                "width": result.width,
                "height": result.height,
            }
        )
        annotations += _coco_annotations(result.detections, image_id, len(annotations) + 1)
    categories = [
        {"id": class_id, "name": name}
        for class_id, name in enumerate(label_names)
        if name != NO_CLASS
    ]
    document: dict[str, Any] = {
        "info": _coco_info(outcomes),
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    if errors:
        document["errors"] = errors
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 if indent else None)


def label_name(label_names: Sequence[str], class_id: int) -> str:
    """The name of a class, or its number where the model has no name for it."""
    return label_names[class_id] if 0 <= class_id < len(label_names) else str(class_id)


def _item(outcome: FileResult) -> dict[str, Any]:
    named = {} if outcome.name is None else {"file": outcome.name}
    if outcome.result is not None:
        return named | _answer(outcome.result)
    if outcome.error is None:
        raise ValueError("a file's outcome has neither a result nor an error")
    error = {key: value for key, value in asdict(outcome.error).items() if value is not None}
    return named | {"error": error}


def _answer(result: DetectResult) -> dict[str, Any]:
    return {
        "model": {"name": result.model_name, "version": result.model_version},
        "image": {"width": result.width, "height": result.height},
        "detections": _detections(result.detections, result.label_names),
        "timings_ms": result.timings.rounded(),
        "request_id": result.request_id,
    }


def rounded_columns(
    detections: Detections,
) -> tuple[list[float], list[int], list[list[float]]]:
    """Scores, class ids and boxes; rounded as float64, so that they print short."""
    scores = detections.scores.astype(np.float64).round(_SCORE_DECIMALS).tolist()
    boxes = detections.boxes_xyxy.astype(np.float64).round(_BOX_DECIMALS).tolist()
    return scores, detections.labels.tolist(), boxes


def _detections(detections: Detections, label_names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "label": label_name(label_names, class_id),
            "class_id": class_id,
            "score": score,
            "box": {"xmin": box[0], "ymin": box[1], "xmax": box[2], "ymax": box[3]},
        }
        for score, class_id, box in zip(*rounded_columns(detections), strict=True)
    ]


def _coco_annotations(detections: Detections, image_id: int, first_id: int) -> list[dict[str, Any]]:
    annotations = []
    columns = zip(*rounded_columns(detections), strict=True)
    for annotation_id, (score, class_id, box) in enumerate(columns, start=first_id):
        width = round(box[2] - box[0], _BOX_DECIMALS)
        height = round(box[3] - box[1], _BOX_DECIMALS)
        annotations.append(
            {
                "id": annotation_id,
                "image_id": image_id,
                "category_id": class_id,
                "bbox": [box[0], box[1], width, height],
                "area": round(width * height, _BOX_DECIMALS),
                "iscrowd": 0,
                "score": score,
            }
        )
    return annotations


def _coco_info(outcomes: Sequence[FileResult]) -> dict[str, str]:
    for outcome in outcomes:
        if outcome.result is not None:
            model = f"{outcome.result.model_name} {outcome.result.model_version}"
            return {"description": f"Detections by {model}"}
    return {"description": "No detections"}
