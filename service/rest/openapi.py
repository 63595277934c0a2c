"""The API's description (OpenAPI 3.1), built from the served model and the settings.

Written here and not derived from handlers: the handlers read raw bodies, which no signature
shows. Tests hold it to the routes, to real answers and to the error table.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from model.weights.info import ModelInfo
from service.core.selection import PRIORITY_HEADER
from service.rest import examples, schemas
from service.rest.problems import PROBLEM_MEDIA_TYPE
from service.rest.query import AnswerFormat
from service.settings import Settings
from service.transport.http_body import TIMEOUT_HEADER
from service.transport.http_request_id import REQUEST_ID_HEADER

_IMAGE_TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/bmp",
    "image/tiff",
    "image/gif",
    "application/octet-stream",
)
_MODELS = (
    schemas.Answer,
    schemas.Answers,
    schemas.CocoAnswer,
    schemas.Health,
    schemas.Models,
    schemas.Problem,
    schemas.Samples,
)
_Json = dict[str, Any]


def describe_api(model: ModelInfo, settings: Settings) -> _Json:
    """The OpenAPI document of one deployment.

    Args:
        model: names the classes and defaults that the document tells.
        settings: the limits that it tells.

    Returns:
        Plain JSON values.
    """
    _, definitions = models_json_schema(
        [(schema, "serialization") for schema in _MODELS],
        ref_template="#/components/schemas/{model}",
    )
    paths: _Json = {
        "/detect": {"post": _detect(model, settings)},
        "/healthz": {"get": _health("Is the process worth keeping?", "live", "not_live")},
        "/readyz": {"get": _health("Should traffic come here now?", "ready", "not_ready")},
        "/v1/models": {
            "get": _get("models", "The models that are served", "Models", examples.MODELS)
        },
        "/samples": {"get": _get("samples", "Photos to try", "Samples", examples.SAMPLES)},
    }
    if settings.metrics_port is None:
        paths["/metrics"] = {"get": _metrics()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lite DETR Serving",
            "version": model.version,
            "summary": "POST a photo, get boxes.",
            "description": _overview(model),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": definitions["$defs"], "headers": _HEADERS},
    }


def _overview(model: ModelInfo) -> str:
    return (
        f"Finds objects in photos with **{model.name}** (weights {model.version}): "
        f"{model.description}\n\n"
        "Errors are `application/problem+json`; `code` is stable, `detail` says what was wrong."
    )


_HEADERS: _Json = {
    REQUEST_ID_HEADER: {
        "description": "the request's id: yours where you sent a sane one, else a new one",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "milliseconds by stage, as browsers' developer tools show them",
        "schema": {"type": "string"},
        "example": "decode;dur=4.1, forward;dur=61.2, total;dur=68.0",
    },
    "Retry-After": {
        "description": "in how many seconds trying again makes sense",
        "schema": {"type": "integer", "minimum": 1},
    },
}


def _detect(model: ModelInfo, settings: Settings) -> _Json:
    binary = {"type": "string", "format": "binary"}
    return {
        "operationId": "detect",
        "summary": "Find objects in a photo",
        "description": (
            "Send one image's own bytes as the body (the fast way), or one or several files as a "
            "form. With several, each file is answered on its own, in order, and one that is bad "
            "does not spoil the others: its place holds an `error` with the `status` that it "
            "would have got alone. The options may also be plain fields of the form.\n\n"
            "JPEG, PNG, WebP, BMP, TIFF and GIF (first frame) are told apart by their content; "
            "EXIF orientation is applied, and boxes are in pixels of the picture as seen. "
            f"A body has at most {settings.max_body_bytes} bytes, an image at most "
            f"{settings.max_image_pixels} pixels, a form at most {settings.max_files} files."
        ),
        "parameters": _parameters(model, settings),
        "requestBody": {
            "required": True,
            "content": {media_type: {"schema": binary} for media_type in _IMAGE_TYPES}
            | {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "array", "items": binary}},
                        "additionalProperties": {"type": "array", "items": binary},
                    }
                }
            },
        },
        "responses": {"200": _detect_answer(), **_detect_problems()},
    }


def _parameters(model: ModelInfo, settings: Settings) -> list[_Json]:
    names = [name for name in model.labels if name != "N/A"]
    rules: tuple[tuple[str, str, _Json], ...] = (
        (
            "threshold",
            "lowest score that is kept",
            {"type": "number", "minimum": 0, "maximum": 1, "default": model.score_threshold},
        ),
        (
            "max_detections",
            "the best so many are kept",
            {"type": "integer", "minimum": 1, "maximum": model.config.max_detections},
        ),
        (
            "labels",
            "classes that are kept, parted by commas or repeated; all where left out",
            {"type": "array", "items": {"type": "string", "enum": names}},
        ),
        (
            "format",
            "json; coco: a COCO data set; image: the photo with boxes drawn (one file only)",
            {"type": "string", "enum": list(AnswerFormat), "default": AnswerFormat.JSON},
        ),
    )
    query = [
        {"name": name, "in": "query", "description": text, "schema": schema}
        for name, text, schema in rules
    ]
    timeout_text = (
        "milliseconds after which the answer is of no use to you; it may only shorten the "
        f"service's own {settings.request_timeout_ms:g}"
    )
    headers = [
        (TIMEOUT_HEADER, timeout_text, {"type": "number", "exclusiveMinimum": 0}),
        (
            PRIORITY_HEADER,
            "who goes first where images wait; high has some places of its own and starves nobody",
            {"type": "string", "enum": ["high", "normal"], "default": "normal"},
        ),
        (REQUEST_ID_HEADER, "your name for the request", {"type": "string", "maxLength": 128}),
        ("traceparent", "W3C trace context; the answer stays in your trace", {"type": "string"}),
    ]
    return query + [
        {"name": name, "in": "header", "description": text, "schema": schema}
        for name, text, schema in headers
    ]


def _detect_answer() -> _Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    shapes = {"anyOf": [_ref("Answer"), _ref("Answers"), _ref("CocoAnswer")]}
    return {
        "description": "what was found: one answer, answers for several files, a COCO data set "
        "or a picture, as asked",
        "headers": _header_refs(REQUEST_ID_HEADER, "Server-Timing"),
        "content": {
            "application/json": {
                "schema": shapes,
                "examples": {
                    "one file": {"value": examples.ANSWER},
                    "several files": {"value": examples.ANSWERS},
                    "format=coco": {"value": examples.COCO},
                },
            },
            "image/jpeg": binary,
            "image/png": binary,
        },
    }


def _detect_problems() -> _Json:
    by_status: dict[int, dict[str, _Json]] = {}
    for name, problem in examples.detect_problems().items():
        by_status.setdefault(problem["status"], {})[name] = {"value": problem}
    return {str(status): _problem_response(named) for status, named in sorted(by_status.items())}


def _problem_response(named: dict[str, _Json]) -> _Json:
    titles = dict.fromkeys(example["value"]["title"] for example in named.values())
    retried = any(example["value"]["status"] in {429, 503} for example in named.values())
    headers = (REQUEST_ID_HEADER, "Retry-After") if retried else (REQUEST_ID_HEADER,)
    return {
        "description": "; ".join(titles),
        "headers": _header_refs(*headers),
        "content": {PROBLEM_MEDIA_TYPE: {"schema": _ref("Problem"), "examples": named}},
    }


def _health(summary: str, status: str, code: str) -> _Json:
    operation = _get(code.removeprefix("not_"), summary, "Health", {"status": status})
    problem = examples.problem(503, code, "Service Unavailable", "the model is loading")
    operation["responses"]["503"] = _problem_response({code: {"value": problem}})
    return operation


def _get(operation_id: str, summary: str, schema: str, example: _Json) -> _Json:
    content = {"application/json": {"schema": _ref(schema), "example": example}}
    return {
        "operationId": operation_id,
        "summary": summary,
        "responses": {
            "200": {
                "description": summary,
                "headers": _header_refs(REQUEST_ID_HEADER),
                "content": content,
            }
        },
    }


def _metrics() -> _Json:
    operation = _get("metrics", "Prometheus metrics", "Health", {})
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return operation


def _ref(schema: str) -> _Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _header_refs(*names: str) -> _Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
