"""The registry of output formats.

`POST /detect?format=`, its OpenAPI description and `lite-detr detect --format` read it. To add a
format, write a module here with an `OutputFormat`, and add it to `OUTPUT_FORMATS`.
"""

from __future__ import annotations

from service.core.formats.coco import COCO
from service.core.formats.drawn_explanation import EXPLANATION
from service.core.formats.drawn_image import DRAWN_IMAGE
from service.core.formats.huggingface import HUGGINGFACE
from service.core.formats.output_format import (
    CocoDataSet,
    Encoded,
    EncodeInput,
    OutputFormat,
    Schema,
)
from service.core.formats.result_json import JSON

__all__ = [
    "DRAWN_IMAGE",
    "HUGGINGFACE",
    "JSON",
    "OUTPUT_FORMATS",
    "CocoDataSet",
    "EncodeInput",
    "Encoded",
    "OutputFormat",
    "Schema",
    "offered_formats",
]

OUTPUT_FORMATS: dict[str, OutputFormat] = {
    output_format.name: output_format
    for output_format in (JSON, COCO, DRAWN_IMAGE, HUGGINGFACE, EXPLANATION)
}


def offered_formats(*, explain: bool) -> list[OutputFormat]:
    """The formats of a service; `explain` is the setting of that name."""
    return [each for each in OUTPUT_FORMATS.values() if explain or not each.explains]
