"""The protocol over HTTP: its paths under /v2."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from service.access.api_keys import Scope as KeyScope
from service.core.detector import Detector
from service.core.model_control import ModelControl
from service.core.selection import PRIORITY_HEADER, parse_priority
from service.oip import http_schemas as schemas
from service.oip.errors import NOT_LIVE, NOT_READY, OipRefused
from service.oip.http_codec import (
    HEADER_LENGTH,
    read_object,
    read_repository_parameters,
    read_request,
    takes_long,
    write_response,
)
from service.oip.http_openapi import (
    INFER_DESCRIPTION,
    INFER_REQUEST,
    INFER_RESPONSE,
    error_responses,
    optional_json_body,
    path_parameters,
    success_response,
)
from service.oip.http_route import OipRoute, UnknownPath, json_response, oip_route
from service.oip.inference import Inference, RequestInfo
from service.oip.model_description import ModelDescription
from service.oip.parameters import read_flag
from service.oip.repository import Repository
from service.oip.request import InferRequest
from service.oip.server_description import server_metadata
from service.settings import Settings
from service.transport.compression import read_plain_body
from service.transport.http_body import BodyAccount, BodyLimits, BodyMemory
from service.transport.http_request import deadline_of, request_id_of, unless_client_leaves
from service.transport.openapi import RequestHandler, register_schemas
from service.transport.route_access import PUBLIC, require

_VERSION = "/versions/{version}"
_MODEL_ERRORS = (404, 503)
_REPOSITORY_ERRORS = (400, 404, 408, 413, 415, 422, 429, 500, 503)
_INFER_ERRORS = (400, 404, 408, 413, 415, 422, 429, 500, 503, 504)
_MAX_REPOSITORY_BYTES = 65_536  # of a body, which has a few names and flags


def oip_routes(
    detector: Detector,
    control: ModelControl,
    settings: Settings,
    bodies: BodyMemory | None = None,
) -> list[BaseRoute]:
    """The routes under /v2.

    Args:
        detector: the core; shared with the other adapters.
        control: loads and unloads the model.
        settings: limits, and whether clients may load and unload.
        bodies: counts the bodies of all adapters; None: a count of its own.

    Returns:
        Routes for the HTTP application, which gives each request its id.
    """
    model = ModelDescription(detector, settings)
    bodies = bodies or BodyMemory(settings.max_bodies_bytes)
    repository = _RepositoryEndpoints(Repository(control, settings), settings, bodies)
    return [
        *_server_routes(_ServerEndpoints(detector)),
        *_model_routes(_ModelEndpoints(detector, model)),
        *_repository_routes(repository),
        *_infer_routes(detector, model, settings, bodies),
        require(KeyScope.DETECT, Route("/v2/{rest:path}", UnknownPath())),
    ]


class _ServerEndpoints:
    """Handles the paths of the server as a whole."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    async def metadata(self, _request: Request) -> Response:
        return json_response(server_metadata())

    async def live(self, _request: Request) -> Response:
        if not self._detector.live:
            raise OipRefused(NOT_LIVE, "the engine fails repeatedly")
        return json_response({"live": True})

    async def ready(self, _request: Request) -> Response:
        if not self._detector.ready:
            raise OipRefused(NOT_READY, self._detector.not_ready_reason)
        return json_response({"ready": True})


def _server_routes(server: _ServerEndpoints) -> list[BaseRoute]:
    get = _get_route
    return [
        *get("/v2", server.metadata, "Server metadata", schemas.ServerMetadata),
        *get("/v2/health/live", server.live, "Server live", schemas.ServerLive, (503,), PUBLIC),
        *get("/v2/health/ready", server.ready, "Server ready", schemas.ServerReady, (503,), PUBLIC),
    ]


class _ModelEndpoints:
    """Handles the paths that describe the model."""

    def __init__(self, detector: Detector, model: ModelDescription) -> None:
        self._detector = detector
        self._model = model

    async def ready(self, request: Request) -> Response:
        model = self._model.check(*_model_of(request))
        if not self._detector.ready:
            raise OipRefused(NOT_READY, self._detector.not_ready_reason)
        return json_response({"name": model.name, "ready": True})

    async def metadata(self, request: Request) -> Response:
        return json_response(self._model.metadata(*_model_of(request)))

    async def config(self, request: Request) -> Response:
        return json_response(self._model.config(*_model_of(request)))

    async def statistics(self, request: Request) -> Response:
        return json_response(self._model.statistics(*_model_of(request)))


def _model_routes(model: _ModelEndpoints) -> list[BaseRoute]:
    stats = (model.statistics, "Model statistics", schemas.ModelStatistics, _MODEL_ERRORS)
    # Before /v2/models/{model}, which matches it too.
    routes = _get_route("/v2/models/stats", stats[0], "Statistics of all models", *stats[2:])
    for suffix in ("", _VERSION):
        path = "/v2/models/{model}" + suffix
        metadata = (model.metadata, "Model metadata", schemas.ModelMetadata, _MODEL_ERRORS)
        ready = (model.ready, "Model ready", schemas.ModelReady, _MODEL_ERRORS)
        config = (model.config, "Model configuration", schemas.ModelConfig, _MODEL_ERRORS)
        routes += [
            *_get_route(path, *metadata),
            *_get_route(f"{path}/ready", *ready),
            *_get_route(f"{path}/config", *config),
            *_get_route(f"{path}/stats", *stats),
        ]
    return routes


class _RepositoryEndpoints:
    """Handles the paths of the model repository."""

    def __init__(self, repository: Repository, settings: Settings, bodies: BodyMemory) -> None:
        self._repository = repository
        self._bodies = bodies
        limits = BodyLimits.of(settings)
        self._limits = replace(limits, max_bytes=min(limits.max_bytes, _MAX_REPOSITORY_BYTES))

    async def index(self, request: Request) -> Response:
        requested = read_object(await self._body(request))
        entries = self._repository.index(ready_only=read_flag(requested, "ready"))
        return json_response([asdict(entry) for entry in entries])

    async def load(self, request: Request) -> Response:
        self._repository.check_allowed()
        parameters = read_repository_parameters(await self._body(request))
        await self._repository.load(request.path_params["model"], parameters)
        return json_response({})

    async def unload(self, request: Request) -> Response:
        self._repository.check_allowed()
        parameters = read_repository_parameters(await self._body(request))
        await self._repository.unload(request.path_params["model"], parameters)
        return json_response({})

    async def _body(self, request: Request) -> bytes:
        with self._bodies.account() as account:
            return await read_plain_body(
                request.headers, request.receive, self._limits, None, account
            )


def _repository_routes(repository: _RepositoryEndpoints) -> list[BaseRoute]:
    index, change = schemas.RepositoryIndexRequest, schemas.RepositoryRequest
    listed, changed = schemas.RepositoryIndex, schemas.RepositoryResponse
    path = "/v2/repository/models/{model}"
    post = _post_route
    listing, control = KeyScope.DETECT, KeyScope.ADMIN
    return [
        *post("/v2/repository/index", repository.index, "List models", listed, index, listing),
        *post(f"{path}/load", repository.load, "Load a model", changed, change, control),
        *post(f"{path}/unload", repository.unload, "Unload a model", changed, change, control),
    ]


class _InferEndpoint:
    """Handles POST .../infer."""

    def __init__(
        self, detector: Detector, model: ModelDescription, settings: Settings, bodies: BodyMemory
    ) -> None:
        self._model = model
        self._bodies = bodies
        self._inference = Inference(detector, model)
        self._limits = BodyLimits.of(settings)
        self._max_images = settings.max_files

    async def respond(self, request: Request) -> Response:
        with self._bodies.account() as account:
            return await self._respond(request, account)

    async def _respond(self, request: Request, account: BodyAccount) -> Response:
        started = time.monotonic()
        deadline = deadline_of(request.headers, started)
        priority = parse_priority(request.headers.get(PRIORITY_HEADER))
        self._model.check(*_model_of(request))
        infer_request = await self._read(request, deadline, account)
        info = RequestInfo(
            request_id=request_id_of(request.scope),
            started=started,
            deadline=deadline,
            priority=priority,
            read_ms=(time.monotonic() - started) * 1000,
        )
        work = self._inference.run(infer_request, info, write_response)
        body, json_length = await unless_client_leaves(work, request.scope, request.receive)
        if json_length is None:
            return Response(body, media_type="application/json")
        headers = {HEADER_LENGTH: str(json_length)}
        return Response(body, headers=headers, media_type="application/octet-stream")

    async def _read(
        self, request: Request, deadline: float | None, account: BodyAccount
    ) -> InferRequest:
        headers = request.headers
        body = await read_plain_body(headers, request.receive, self._limits, deadline, account)
        header_length = headers.get(HEADER_LENGTH)
        if not takes_long(body, header_length):
            return read_request(body, header_length, self._max_images)
        decoded = await asyncio.to_thread(read_request, body, header_length, self._max_images)
        account.take(sum(map(len, decoded.images)))
        return decoded


def _infer_routes(
    detector: Detector, model: ModelDescription, settings: Settings, bodies: BodyMemory
) -> list[BaseRoute]:
    endpoint = _InferEndpoint(detector, model, settings, bodies)
    routes: list[BaseRoute] = []
    for suffix in ("", _VERSION):
        path = "/v2/models/{model}" + suffix + "/infer"
        parameters = [*path_parameters(path)["parameters"], *INFER_REQUEST["parameters"]]
        routes += oip_route(
            "POST",
            path,
            endpoint.respond,
            access=KeyScope.DETECT,
            counted_by=detector.metrics,
            summary="Infer",
            description=INFER_DESCRIPTION,
            responses=INFER_RESPONSE | error_responses(_INFER_ERRORS),
            openapi_extra=INFER_REQUEST | {"parameters": parameters},
        )
        _register(routes, schemas.InferenceRequest, schemas.InferenceResponse)
    return routes


def _get_route(  # noqa: PLR0913, PLR0917 - what a route declares
    path: str,
    endpoint: RequestHandler,
    summary: str,
    response_model: type[BaseModel],
    errors: Sequence[int] = (),
    access: KeyScope | None = KeyScope.DETECT,
) -> list[BaseRoute]:
    return oip_route(
        "GET",
        path,
        endpoint,
        access=access,
        summary=summary,
        response_model=response_model,
        responses=success_response(summary) | error_responses(errors),
        openapi_extra=path_parameters(path),
    )


def _post_route(  # noqa: PLR0913, PLR0917 - what a route declares
    path: str,
    endpoint: RequestHandler,
    summary: str,
    response_model: type[BaseModel],
    request_model: type[BaseModel],
    access: KeyScope,
) -> list[BaseRoute]:
    routes = oip_route(
        "POST",
        path,
        endpoint,
        access=access,
        summary=summary,
        response_model=response_model,
        responses=success_response(summary) | error_responses(_REPOSITORY_ERRORS),
        openapi_extra=path_parameters(path) | optional_json_body(request_model),
    )
    _register(routes, request_model)
    return routes


def _register(routes: list[BaseRoute], *models: type[BaseModel]) -> None:
    """Adds models that `openapi_extra` refers to."""
    for route in routes:
        if isinstance(route, OipRoute):
            register_schemas(route, *models)


def _model_of(request: Request) -> tuple[str, str]:
    """The model's name and version in the path; empty where the path has none."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")
