"""format=huggingface: what Hugging Face's clients expect of an object-detection endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import RootModel

from model.detections import Detections
from service.core.encoding import FileResult, label_name, rounded_columns
from service.core.formats.output_format import Encoded, EncodeInput, OutputFormat, Schema
from service.core.formats.result_json import Score, file_item


class PixelBox(Schema):
    """A box in whole pixels, after EXIF rotation."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class LabeledBox(Schema):
    """A detection as Hugging Face's clients read it."""

    score: Score
    label: str
    box: PixelBox


class LabeledBoxes(RootModel[list[LabeledBox]]):
    """The detections in one image, best score first."""


_EXAMPLE: list[dict[str, Any]] = [
    {
        "score": 0.9731,
        "label": "qr_code",
        "box": {"xmin": 120, "ymin": 88, "xmax": 268, "ymax": 240},
    }
]


def encode_huggingface(job: EncodeInput) -> Encoded:
    """One file: a list of detections. Several files: a list of such lists.

    A file of several that has no result is an object with its `error` instead.
    """
    items = [_item(file) for file in job.files]
    option = orjson.OPT_INDENT_2 if job.indent else None
    document = items[0] if len(items) == 1 else items
    return Encoded(orjson.dumps(document, option=option), "application/json")


def _item(file: FileResult) -> Any:
    if file.result is None:
        return file_item(file)
    return _labeled_boxes(file.result.detections, file.result.label_names)


def _labeled_boxes(detections: Detections, label_names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "score": score,
            "label": label_name(label_names, class_id),
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(round, box), strict=True)),
        }
        for score, class_id, box in zip(*rounded_columns(detections), strict=True)
    ]


HUGGINGFACE = OutputFormat(
    name="huggingface",
    description="the list that Hugging Face's clients expect: score, label, box in whole pixels",
    media_types=("application/json",),
    encode=encode_huggingface,
    schemas=(LabeledBoxes,),
    examples={"for Hugging Face's clients": _EXAMPLE},
)
