"""Amazon SageMaker: GET /ping and POST /invocations on the port that it names, 8080 by default.

/invocations takes what POST /detect takes. Clients of an endpoint cannot send a query string, so
the options may be in the header of custom attributes, and the format in Accept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from service.access.api_keys import Scope as KeyScope
from service.clouds.contract import (
    Cloud,
    CloudSetting,
    Deployment,
    find_weights,
    http_port,
    is_given,
    reachable,
    unusable_access,
)
from service.core.detector import Detector
from service.core.formats import DRAWN_IMAGE, JSON
from service.errors import short_repr
from service.rest.detection import DetectEndpoint
from service.rest.media_types import media_type_of
from service.rest.probes import readiness_route
from service.rest.query import PARAMETERS, split_query_string
from service.settings import Settings
from service.transport.http_body import BodyMemory
from service.transport.http_request import RequestRefused
from service.transport.option_values import number_of
from service.transport.route_access import require

_TITLE = "SageMaker"
_PORT_VARIABLE = "SAGEMAKER_BIND_TO_PORT"
_RANGE_VARIABLE = "SAGEMAKER_SAFE_PORT_RANGE"
_RANGE = re.compile(r"\s*([0-9]{1,5})\s*-\s*([0-9]{1,5})\s*")
_DEFAULT_PORT = 8080
_MODEL_FOLDER = Path("/opt/ml/model")
_STOP_SECONDS = 28.0  # of the 30 s from SIGTERM to SIGKILL
_HEALTH_PATH, _PREDICT_PATH = "/ping", "/invocations"
_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_JSON_RANGES = ("application/json", "application/*", "*/*", "*")  # the most specific one counts
_NOT_ACCEPTED = (0.0, 1)  # above every place with the quality 0, below every other quality


def read_deployment(
    environment: Mapping[str, str], given: Settings, model_folder: Path = _MODEL_FOLDER
) -> Deployment:
    """Reads the deployment.

    Args:
        environment: all variables.
        given: the settings of the deployment itself.
        model_folder: where SageMaker unpacks the model.

    Raises:
        SettingsError: for a port or a model that cannot be used.
    """
    settings = http_port(environment, _PORT_VARIABLE, _DEFAULT_PORT, given)
    settings += reachable(_TITLE)
    settings.append(CloudSetting("drain_timeout_seconds", _STOP_SECONDS, _TITLE, required=False))
    if not is_given(given, "model"):
        weights = find_weights(model_folder, str(model_folder))
        if weights is not None:
            settings.append(CloudSetting("model", str(weights), str(model_folder)))
    warnings = unusable_access(_TITLE, given, keys=False)
    warnings += _second_port_warnings(environment.get(_RANGE_VARIABLE, ""), given)
    return Deployment(SAGEMAKER, tuple(settings), _HEALTH_PATH, _PREDICT_PATH, tuple(warnings))


def _second_port_warnings(text: str, given: Settings) -> list[str]:
    """Warnings about ports in addition to the HTTP port outside the range that is free."""
    if not text.strip():
        return []
    found = _RANGE.fullmatch(text)
    if found is None:
        return [f"{_RANGE_VARIABLE}={text!r} is ignored: it is not FIRST-LAST"]
    first, last = int(found[1]), int(found[2])
    ports = {
        field: getattr(given, field)
        for field in ("grpc_port", "metrics_port")
        if is_given(given, field)
    }
    return [
        f"{field}={port} is outside {_RANGE_VARIABLE}={text!r}"
        for field, port in ports.items()
        if port is not None and port > 0 and not first <= port <= last
    ]


def _routes(
    _deployment: Deployment, detector: Detector, settings: Settings, bodies: BodyMemory
) -> list[BaseRoute]:
    endpoint = DetectEndpoint(detector, settings, bodies, "sagemaker")
    predict = Route(_PREDICT_PATH, partial(_invoke, endpoint), methods=["POST"])
    return [readiness_route(_HEALTH_PATH, detector), require(KeyScope.DETECT, predict)]


async def _invoke(endpoint: DetectEndpoint, request: Request) -> Response:
    """Handles a request like POST /detect, with the options of its headers in its query."""
    query = split_query_string(request.scope["query_string"])
    attributes = request.headers.get(_ATTRIBUTES, "")
    query += [
        (name, value)
        for name, value in split_query_string(attributes.encode("latin-1"))
        if name in PARAMETERS  # clients also put ids of their own there
    ]
    accept = ",".join(request.headers.getlist("accept"))
    if _wants_image(accept) and all(name != "format" for name, _ in query):
        query.append(("format", DRAWN_IMAGE.name))
    scope = {**request.scope, "query_string": urlencode(query).encode()}
    return await endpoint.respond_in(JSON, Request(scope, request.receive))


def _wants_image(accept: str) -> bool:
    """Whether the response is the drawn image instead of JSON.

    It is the type of the higher quality (RFC 9110, 12.5.1); of equal ones, the first.

    Args:
        accept: values of the header, separated by commas; empty: JSON.

    Raises:
        RequestRefused: if neither is accepted.
    """
    qualities: dict[str, tuple[float, int]] = {}  # and the negative place, by media type
    for place, part in enumerate(filter(str.strip, accept.split(","))):
        qualities.setdefault(media_type_of(part), (_quality_of(part), -place))
    json = next((qualities[each] for each in _JSON_RANGES if each in qualities), None)
    images = (value for name, value in qualities.items() if name.startswith("image/"))
    image = max(images, default=_NOT_ACCEPTED)
    if image > max(json or _NOT_ACCEPTED, _NOT_ACCEPTED):
        return True
    # A header that only excludes types leaves JSON.
    only_excludes = json is None and not any(quality for quality, _ in qualities.values())
    if only_excludes or (json is not None and json > _NOT_ACCEPTED):
        return False
    raise RequestRefused(
        406,
        "not_acceptable",
        f"Accept is {short_repr(accept)}; the service returns application/json or, with the "
        "boxes drawn, image/*",
    )


def _quality_of(media_range: str) -> float:
    """The parameter q of a part of an Accept header, 0..1; 1 if there is no valid one."""
    for parameter in media_range.split(";")[1:]:
        name, _, value = parameter.partition("=")
        quality = number_of(value)
        if name.strip().lower() == "q" and quality is not None and 0 <= quality <= 1:
            return quality
    return 1.0


SAGEMAKER = Cloud("sagemaker", _TITLE, (_PORT_VARIABLE, _RANGE_VARIABLE), read_deployment, _routes)
