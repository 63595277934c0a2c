"""The OpenAPI description of the protocol's HTTP routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus

from pydantic import BaseModel

from service.core.selection import PRIORITY_HEADER
from service.oip.http_codec import HEADER_LENGTH
from service.oip.http_schemas import InferenceRequest, InferenceResponse, OipError
from service.transport.http_request import REQUEST_ID_HEADER, TIMEOUT_HEADER
from service.transport.openapi import BINARY, JsonObject, response_headers, schema_ref

TAG = "Open Inference Protocol"
_PATH_PARAMETERS = {
    "model": "name of the model",
    "version": "version of the model: the first 12 hex digits of its weights' SHA-256",
}
_RETRIED = frozenset({429, 503})
_HEADER_LENGTH_TEXT = "bytes of the JSON in front of the binary data; 0: only binary data"


def path_parameters(path: str) -> JsonObject:
    """The parameters of a path such as /v2/models/{model}, for `openapi_extra`."""
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]
    return {"parameters": parameters} if parameters else {}


def error_responses(statuses: Sequence[int]) -> dict[int | str, JsonObject]:
    """The error responses of a route, by status."""
    responses: dict[int | str, JsonObject] = {}
    for status in statuses:
        headers = (REQUEST_ID_HEADER, "Retry-After") if status in _RETRIED else (REQUEST_ID_HEADER,)
        responses[status] = {
            "model": OipError,
            "description": HTTPStatus(status).phrase,
            "headers": response_headers(*headers),
        }
    return responses


def success_response(description: str) -> dict[int | str, JsonObject]:
    """The 200 response of a route."""
    return {200: {"description": description, "headers": response_headers(REQUEST_ID_HEADER)}}


def optional_json_body(model: type[BaseModel]) -> JsonObject:
    """A JSON body that may be left out."""
    return {"requestBody": {"content": {"application/json": {"schema": schema_ref(model)}}}}


INFER_DESCRIPTION = (
    "The input IMAGE holds whole image files: base64 in the JSON, or as they are behind it with "
    "the binary extension of the protocol. Results are those of POST /detect."
)
INFER_RESPONSE: dict[int | str, JsonObject] = {
    200: {
        "description": "the requested outputs",
        "headers": {
            **response_headers(REQUEST_ID_HEADER),
            HEADER_LENGTH: {
                "description": _HEADER_LENGTH_TEXT,
                "schema": {"type": "integer", "minimum": 0},
            },
        },
        "content": {
            "application/json": {"schema": schema_ref(InferenceResponse)},
            "application/octet-stream": {"schema": BINARY},
        },
    }
}
INFER_REQUEST: JsonObject = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema_ref(InferenceRequest)},
            "application/octet-stream": {"schema": BINARY},
        },
    },
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "description": _HEADER_LENGTH_TEXT,
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": TIMEOUT_HEADER,
            "in": "header",
            "description": "milliseconds after which the client no longer needs the response",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        },
        {
            "name": PRIORITY_HEADER,
            "in": "header",
            "description": "order of waiting images",
            "schema": {"type": "string", "enum": ["high", "normal"], "default": "normal"},
        },
    ],
}
