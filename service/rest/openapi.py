"""What FastAPI cannot derive from the routes' signatures, for the OpenAPI document.

The handlers read raw bodies and write encoded ones. Their parameters, bodies and errors are
described here; tests compare the document with the routes, with real responses and with the
error table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from model.labels import named_classes
from model.weights.info import ModelInfo
from service.core.detector import Detector
from service.core.formats import JSON, OUTPUT_FORMATS, OutputFormat, offered_formats
from service.core.selection import PRIORITY_HEADER
from service.core.tiling.grid import MAX_OVERLAP, MAX_SIDE, MIN_SIDE
from service.core.tiling.options import AUTO
from service.rest import examples
from service.rest.openapi_access import describe_access
from service.rest.problems import PROBLEM_MEDIA_TYPE
from service.rest.schemas import Problem
from service.settings import Settings
from service.transport.http_request import REQUEST_ID_HEADER, TIMEOUT_HEADER
from service.transport.openapi import (
    BINARY,
    JsonObject,
    response_headers,
    schema_ref,
)
from service.types import DEFAULT_OVERLAP

API_TITLE = "Lite DETR Serving"
API_SUMMARY = "POST an image, get boxes."
API_LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
_IMAGE_TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/bmp",
    "image/tiff",
    "image/gif",
    "image/avif",
    "image/heic",
    "application/octet-stream",
)

_TILE_PARAMETERS: tuple[tuple[str, str, JsonObject], ...] = (
    (
        "tile",
        "cuts a large image into overlapping tiles for small objects: auto, or WIDTHxHEIGHT in "
        f"pixels of the image, each side from {MIN_SIDE} to {MAX_SIDE}",
        {
            "type": "string",
            "pattern": "^(auto|[0-9]{2,4}x[0-9]{2,4})$",
            "examples": [AUTO, "640x480"],
        },
    ),
    (
        "overlap",
        "with tile: the least overlap of neighbouring tiles, as a share of a tile",
        {"type": "number", "minimum": 0, "maximum": MAX_OVERLAP, "default": DEFAULT_OVERLAP},
    ),
)


class OpenApiDocument:
    """FastAPI's document, generated again whenever another model is served.

    The model's name, classes and default threshold are part of the document.
    """

    def __init__(
        self,
        app: FastAPI,
        detect_route: APIRoute,
        detector: Detector,
        settings: Settings,
        *,
        keys_required: bool = False,
    ) -> None:
        """Describes the model that the detector serves now, and becomes `app.openapi`."""
        self._app = app
        self._generate = app.openapi
        app.openapi = self.current  # type: ignore[method-assign]
        self._keys_required = keys_required
        self._detect_route = detect_route
        self._detector = detector
        self._settings = settings
        self._model = detector.model
        self._describe(self._model)

    def current(self) -> dict[str, Any]:
        """The document for the model that is served now."""
        if self._detector.model is not self._model:
            self._model = self._detector.model
            self._describe(self._model)
        if self._app.openapi_schema is None:  # FastAPI's cache
            routes = self._app.router.routes
            describe_access(self._generate(), routes, keys_required=self._keys_required)
        return self._generate()

    def _describe(self, model: ModelInfo) -> None:
        self._app.version = model.version
        self._app.description = (
            f"Detects objects in images with **{model.name}** (weights {model.version}): "
            f"{model.description}\n\n"
            "Errors are `application/problem+json`; `code` is stable, `detail` says what was "
            "wrong."
        )
        self._detect_route.openapi_extra = {
            "parameters": [
                *_query_parameters(
                    model,
                    offered_formats(explain=self._settings.explain),
                    self._settings.max_tiles,
                ),
                *_header_parameters(self._settings),
            ],
            "requestBody": _image_body(),
        }
        self._app.openapi_schema = None


def detect_description(settings: Settings) -> str:
    """The description of POST /detect."""
    return (
        "Send the bytes of one image as the body (the fast way), or one or several files as a "
        "form. Each of several files has a result of its own, in order; one failure does not "
        "affect the others: its entry is an `error` with the `status` that the file would have "
        "got by itself. The options may also be plain fields of the form.\n\n"
        "JPEG, PNG, WebP, BMP, TIFF, GIF (first frame), AVIF and, if the extra `heic` is "
        "installed, HEIC are recognized by their content. EXIF orientation is applied; boxes are "
        "in pixels, after EXIF rotation. "
        f"A body has at most {settings.max_body_bytes} bytes, an image at most "
        f"{settings.max_image_pixels} pixels, a form at most {settings.max_files} files."
    )


def detect_responses() -> dict[int | str, JsonObject]:
    """All responses of POST /detect, by status."""
    return {200: _detect_success(), **_detect_problems()}


def ok_response(description: str, example: Any = None) -> dict[int | str, JsonObject]:
    """The 200 response of a plain JSON route."""
    response: JsonObject = {
        "description": description,
        "headers": response_headers(REQUEST_ID_HEADER),
    }
    if example is not None:
        response["content"] = {"application/json": {"example": example}}
    return {200: response}


def unavailable_response(code: str) -> dict[int | str, JsonObject]:
    """The 503 response of a probe."""
    problem = examples.problem(503, code, "Service Unavailable", "the model is loading")
    return {503: _problem_response({code: {"value": problem}})}


def _query_parameters(
    model: ModelInfo, offered: Sequence[OutputFormat], max_tiles: int
) -> list[JsonObject]:
    names = [name for _, name in named_classes(model.labels)]
    formats = "; ".join(f"{each.name}: {each.description}" for each in offered)
    explained: tuple[str, str, JsonObject] = (
        "detection",
        "with format=explain: the detection to explain, 1 is the best",
        {"type": "integer", "minimum": 1, "maximum": model.config.max_detections},
    )
    rules: tuple[tuple[str, str, JsonObject], ...] = (
        (
            "threshold",
            "lowest score of the detections that are returned",
            {"type": "number", "minimum": 0, "maximum": 1, "default": model.score_threshold},
        ),
        (
            "max_detections",
            "maximum number of detections, the best first",
            {"type": "integer", "minimum": 1, "maximum": model.config.max_detections},
        ),
        (
            "labels",
            "classes to return, separated by commas or repeated; all if left out",
            {"type": "array", "items": {"type": "string", "enum": names}},
        ),
        (
            "format",
            formats,
            {"type": "string", "enum": [each.name for each in offered], "default": JSON.name},
        ),
        *((explained,) if any(each.explains for each in offered) else ()),
        *(_TILE_PARAMETERS if max_tiles else ()),
    )
    return [
        {"name": name, "in": "query", "description": text, "schema": schema}
        for name, text, schema in rules
    ]


def _header_parameters(settings: Settings) -> list[JsonObject]:
    timeout_text = (
        "milliseconds after which the client no longer needs the response; it can only shorten "
        f"the service's own timeout of {settings.request_timeout_ms:g}"
    )
    rules: tuple[tuple[str, str, JsonObject], ...] = (
        (TIMEOUT_HEADER, timeout_text, {"type": "number", "exclusiveMinimum": 0}),
        (
            PRIORITY_HEADER,
            "order of waiting images; high has some slots of its own and does not starve normal",
            {"type": "string", "enum": ["high", "normal"], "default": "normal"},
        ),
        (
            REQUEST_ID_HEADER,
            "echoed if valid, otherwise generated",
            {"type": "string", "maxLength": 128},
        ),
        (
            "traceparent",
            "W3C trace context; the response belongs to your trace",
            {"type": "string"},
        ),
    )
    return [
        {"name": name, "in": "header", "description": text, "schema": schema}
        for name, text, schema in rules
    ]


def _image_body() -> JsonObject:
    form = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": BINARY}},
        "additionalProperties": {"type": "array", "items": BINARY},
    }
    json_form = {
        "type": "object",
        "description": "as Hugging Face's clients send it; the response is in format=huggingface",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "string", "description": "the image file as base64 or data: URL"},
            "parameters": {"type": "object", "description": "the options of the query"},
        },
    }
    return {
        "required": True,
        "content": {media_type: {"schema": BINARY} for media_type in _IMAGE_TYPES}
        | {"multipart/form-data": {"schema": form}, "application/json": {"schema": json_form}},
    }


def _detect_success() -> JsonObject:
    content: JsonObject = {}
    for output_format in OUTPUT_FORMATS.values():
        for media_type in output_format.media_types:
            entry = content.setdefault(media_type, {})
            if not output_format.schemas:  # the schemas of JSON documents are the response model
                text = media_type.startswith("text/")
                entry["schema"] = {"type": "string"} if text else BINARY
            for title, example in output_format.examples.items():
                entry.setdefault("examples", {})[title] = {"value": example}
    return {
        "description": "the detections, in the requested format",
        "headers": response_headers(REQUEST_ID_HEADER, "Server-Timing"),
        "content": content,
    }


def _detect_problems() -> dict[int | str, JsonObject]:
    by_status: dict[int, dict[str, JsonObject]] = {}
    for name, problem in examples.detect_problems().items():
        by_status.setdefault(problem["status"], {})[name] = {"value": problem}
    return {status: _problem_response(named) for status, named in sorted(by_status.items())}


def _problem_response(named: dict[str, JsonObject]) -> JsonObject:
    titles = dict.fromkeys(example["value"]["title"] for example in named.values())
    retried = any(example["value"]["status"] in {429, 503} for example in named.values())
    headers = (REQUEST_ID_HEADER, "Retry-After") if retried else (REQUEST_ID_HEADER,)
    return {
        "description": "; ".join(titles),
        "headers": response_headers(*headers),
        "content": {PROBLEM_MEDIA_TYPE: {"schema": schema_ref(Problem), "examples": named}},
    }
