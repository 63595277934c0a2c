"""format=json: one object for one file, a list of them for several.

The encoder passes plain columns to orjson: validating the models below would take ten times as
long. Tests validate its output against them. The names of the models are part of the OpenAPI
document, and so of generated clients: they do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from pydantic import Field

from model.detections import Detections
from service.core.encoding import FileResult, label_name, rounded_columns
from service.core.formats.output_format import Encoded, EncodeInput, OutputFormat, Schema
from service.types import DetectResult

Score = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]


class Box(Schema):
    """Corners in pixels of the image after EXIF rotation; the origin is the top left corner."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class Detection(Schema):
    """One detected object."""

    label: str
    class_id: int
    score: Score
    box: Box


class ModelName(Schema):
    """The model that made the detections."""

    name: str
    version: str = Field(description="first 12 hex digits of the weights file's SHA-256")


class ImageSize(Schema):
    """Size in pixels, after EXIF rotation."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Timings(Schema):
    """Time spent in each stage, in milliseconds."""

    read: Milliseconds = Field(description="receiving the body")
    decode: Milliseconds = Field(description="from the file's bytes to resized pixels")
    queue: Milliseconds = Field(description="waiting for a decoder, a batch and the engine")
    assemble: Milliseconds = Field(description="assembling the batch")
    device_copy: Milliseconds = Field(  # pydantic models have a method `copy`
        alias="copy", description="copying the batch to the device; 0 on a CPU"
    )
    forward: Milliseconds = Field(description="the network, for the whole batch")
    postprocess: Milliseconds = Field(description="from the network's output to detections")
    total: Milliseconds


class DetectResponse(Schema):
    """Detections in one image, best score first."""

    model: ModelName
    image: ImageSize
    detections: list[Detection]
    timings_ms: Timings
    request_id: str


class FileResponse(DetectResponse):
    """Detections in one file of several."""

    file: str


class FileError(Schema):
    """Why one file of several has no result."""

    status: int = Field(description="the HTTP status if the file had been sent alone")
    code: str
    title: str
    detail: str
    retry_after_s: int | None = None


class FailedFile(Schema):
    """A file of several that has no result."""

    file: str
    error: FileError


class FilesResponse(Schema):
    """Results of several files, in their order."""

    results: list[FileResponse | FailedFile]
    request_id: str


_REQUEST_ID = "5b0e4f5c0e9a4d6f8a7a3c1d2e4f6a8b"
_ONE: dict[str, Any] = {
    "model": {"name": "lite-dino-codes", "version": "3f2a9c71d0be"},
    "image": {"width": 640, "height": 480},
    "detections": [
        {
            "label": "qr_code",
            "class_id": 0,
            "score": 0.9731,
            "box": {"xmin": 120.25, "ymin": 88.5, "xmax": 268.0, "ymax": 239.75},
        }
    ],
    "timings_ms": {
        "read": 0.4,
        "decode": 6.1,
        "queue": 1.2,
        "assemble": 0.6,
        "copy": 0.0,
        "forward": 92.7,
        "postprocess": 0.5,
        "total": 101.5,
    },
    "request_id": _REQUEST_ID,
}
_SEVERAL: dict[str, Any] = {
    "results": [
        {"file": "shelf.jpg", **_ONE, "request_id": f"{_REQUEST_ID}-1"},
        {
            "file": "notes.pdf",
            "error": {
                "code": "unsupported_image",
                "title": "This kind of file is not supported",
                "detail": "this looks like a PDF document; accepted are JPEG, PNG, WebP, BMP, "
                "TIFF, GIF, AVIF, HEIC",
                "status": 415,
            },
        },
    ],
    "request_id": _REQUEST_ID,
}


def encode_json(job: EncodeInput) -> Encoded:
    """One file: an object. Several files: `{"results": [...], "request_id": ...}`.

    Without a request id (offline): a bare array, also for one file.
    """
    document: Any
    if job.request_id is None:
        document = [file_item(file) for file in job.files]
    elif len(job.files) == 1 and job.files[0].result is not None:
        document = result_object(job.files[0].result)
    else:
        document = {
            "results": [file_item(file) for file in job.files],
            "request_id": job.request_id,
        }
    option = orjson.OPT_INDENT_2 if job.indent else None
    return Encoded(orjson.dumps(document, option=option), "application/json")


def file_item(file: FileResult) -> dict[str, Any]:
    """One file of several: its name with its result or its error.

    Raises:
        ValueError: for a file that has neither.
    """
    named = {} if file.name is None else {"file": file.name}
    if file.result is not None:
        return named | result_object(file.result)
    if file.error is None:
        raise ValueError("a file has neither a result nor an error")
    error = {key: value for key, value in asdict(file.error).items() if value is not None}
    return named | {"error": error}


def result_object(result: DetectResult) -> dict[str, Any]:
    """The result of one file, as format=json writes it."""
    return {
        "model": {"name": result.model_name, "version": result.model_version},
        "image": {"width": result.width, "height": result.height},
        "detections": _detections(result.detections, result.label_names),
        "timings_ms": result.timings.rounded(),
        "request_id": result.request_id,
    }


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


JSON = OutputFormat(
    name="json",
    description="one object, or a list of results for several files",
    media_types=("application/json",),
    encode=encode_json,
    schemas=(DetectResponse, FilesResponse),
    examples={"one file": _ONE, "several files": _SEVERAL},
)
