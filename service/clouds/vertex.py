"""Vertex AI: health and predict routes by variables, `instances` in, `predictions` out.

    {"instances": [{"b64": "..."}, ...], "parameters": {"threshold": 0.5}}
    {"predictions": [{"image": ..., "detections": [...]}, {"error": {...}}]}

A body of another type than JSON (`rawPredict`) is handled as by POST /detect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.routing import BaseRoute

from service.clouds.contract import (
    Cloud,
    CloudSetting,
    Deployment,
    http_port,
    is_given,
    reachable,
    required_weights,
    unusable_access,
)
from service.clouds.json_images import JsonForm, JsonRequest, image_of, list_of, predict_route
from service.core.detector import Detector
from service.core.encoding import FileResult, ItemError
from service.core.formats.result_json import result_object
from service.rest.probes import readiness_route
from service.settings import Settings, SettingsError
from service.transport.http_body import BodyMemory

_TITLE = "Vertex AI"
_PORT_VARIABLE = "AIP_HTTP_PORT"
_HEALTH_VARIABLE, _PREDICT_VARIABLE = "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"
_STORAGE_VARIABLE = "AIP_STORAGE_URI"
_DEFAULT_PORT = 8080
_DEFAULT_PATHS = {_HEALTH_VARIABLE: "/health", _PREDICT_VARIABLE: "/predict"}
_OWN_HEALTH_PATHS = ("/readyz", "/v2/health/ready")
_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()*+,;=/-]*")
# Google's names of errors, by HTTP status.
_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_OTHER_STATUS = "INVALID_ARGUMENT"


def _read(environment: Mapping[str, str], given: Settings) -> Deployment:
    settings = http_port(environment, _PORT_VARIABLE, _DEFAULT_PORT, given)
    settings += reachable(_TITLE)
    settings += _model(environment.get(_STORAGE_VARIABLE, "").strip(), given)
    return Deployment(
        VERTEX,
        tuple(settings),
        _path(environment, _HEALTH_VARIABLE),
        _path(environment, _PREDICT_VARIABLE),
        tuple(unusable_access(_TITLE, given, keys=False)),
    )


def _path(environment: Mapping[str, str], variable: str) -> str:
    path = environment.get(variable, "").strip() or _DEFAULT_PATHS[variable]
    if not _PATH.fullmatch(path):
        raise SettingsError(f"{variable}={path!r} is not a path such as {_DEFAULT_PATHS[variable]}")
    return path


def _model(uri: str, given: Settings) -> list[CloudSetting]:
    """The model in the folder of model files.

    Raises:
        SettingsError: for a folder that is not on this machine, or without a model.
    """
    if not uri:
        return []
    source = f"{_STORAGE_VARIABLE}={uri!r}"
    if is_given(given, "model"):
        return [CloudSetting("model", uri, source)]
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from None
    if parts.scheme not in {"", "file"}:
        raise SettingsError(
            f"{source}: the service does not download models; put the weights file into the image, "
            "or mount the bucket, and set model (LITE_DETR_MODEL)"
        )
    weights = required_weights(Path(unquote(parts.path) if parts.scheme else uri), source)
    return [CloudSetting("model", str(weights), source)]


def _routes(
    deployment: Deployment, detector: Detector, settings: Settings, bodies: BodyMemory
) -> list[BaseRoute]:
    assert deployment.health_path is not None, "the contract has both paths"
    assert deployment.predict_path is not None, "the contract has both paths"
    predict = predict_route(deployment.predict_path, FORM, detector, settings, bodies)
    if deployment.health_path in _OWN_HEALTH_PATHS:
        return [predict]
    return [readiness_route(deployment.health_path, detector), predict]


def read_instances(document: Mapping[str, Any], max_images: int) -> JsonRequest:
    """Reads `{"instances": [{"b64": ...}], "parameters": {...}}`.

    Raises:
        RequestRefused: for JSON of another form.
        InvalidOptions: for too many instances.
    """
    instances = list_of(document, "instances", max_images)
    images = [
        image_of(each.get("b64") if isinstance(each, dict) else None, f"instances[{place}].b64")
        for place, each in enumerate(instances)
    ]
    return JsonRequest(images, document.get("parameters"))


def write_predictions(results: Sequence[FileResult]) -> dict[str, Any]:
    """Returns one prediction or error for each instance, in their order."""
    return {"predictions": [_prediction(each) for each in results]}


def _prediction(file: FileResult) -> dict[str, Any]:
    if file.result is not None:
        return result_object(file.result)
    assert file.error is not None, "a file has a result or an error"
    return write_error(file.error)


def write_error(error: ItemError) -> dict[str, Any]:
    """Returns an error in the form of Google's APIs."""
    status = error.status or 500
    name = _STATUSES.get(status, _OTHER_STATUS)
    return {"error": {"code": status, "message": error.detail, "status": name}}


FORM = JsonForm("vertex", ("instances", "b64"), read_instances, write_predictions, write_error)
VERTEX = Cloud(
    "vertex",
    _TITLE,
    (_PORT_VARIABLE, _HEALTH_VARIABLE, _PREDICT_VARIABLE, _STORAGE_VARIABLE),
    _read,
    _routes,
)
