"""The protocol over HTTP: its paths, and what stands behind each of them."""

from __future__ import annotations

import time
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from service.core.detector import Detector
from service.core.model_control import ModelControl
from service.core.selection import PRIORITY_HEADER, parse_priority
from service.oip.compression import inflate_body
from service.oip.errors import NOT_ALIVE, NOT_READY, UNKNOWN_PATH, OipRefused
from service.oip.http_codec import (
    HEADER_LENGTH,
    read_object,
    read_repository_parameters,
    read_request,
    write_answer,
)
from service.oip.http_endpoint import Endpoint, json_response
from service.oip.inference import Arrival, Inference
from service.oip.model_description import ModelDescription
from service.oip.parameters import read_flag
from service.oip.repository import Repository
from service.oip.request import InferRequest
from service.oip.server_description import server_metadata
from service.settings import Settings
from service.transport.http_body import BodyAccount, BodyLimits, BodyMemory, read_body
from service.transport.http_request import (
    TIMEOUT_HEADER,
    parse_timeout_s,
    request_id_of,
    unless_client_leaves,
)


def oip_routes(
    detector: Detector,
    control: ModelControl,
    settings: Settings,
    bodies: BodyMemory | None = None,
) -> list[BaseRoute]:
    """The routes under /v2.

    Args:
        detector: the core; shared with the other adapters.
        control: over what is served.
        settings: limits, and whether clients may load and unload.
        bodies: what the bodies of all adapters together may hold; None: a count of its own.

    Returns:
        Routes for the HTTP application, which gives each request its id.
    """
    model = ModelDescription(detector, settings)
    probes = _Probes(detector, model)
    repository = _RepositoryPaths(Repository(control, settings), settings)
    infer = _Infer(detector, model, settings, bodies or BodyMemory(settings.max_bodies_bytes))
    routes: list[BaseRoute] = [
        Route("/v2", Endpoint("GET", probes.server)),
        Route("/v2/health/live", Endpoint("GET", probes.live)),
        Route("/v2/health/ready", Endpoint("GET", probes.ready)),
        Route("/v2/models/stats", Endpoint("GET", probes.statistics)),
        Route("/v2/repository/index", Endpoint("POST", repository.index)),
        Route("/v2/repository/models/{model}/load", Endpoint("POST", repository.load)),
        Route("/v2/repository/models/{model}/unload", Endpoint("POST", repository.unload)),
    ]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(path, Endpoint("GET", probes.metadata)),
            Route(f"{path}/ready", Endpoint("GET", probes.model_ready)),
            Route(f"{path}/config", Endpoint("GET", probes.config)),
            Route(f"{path}/stats", Endpoint("GET", probes.statistics)),
            Route(f"{path}/infer", Endpoint("POST", infer.answer, detector.metrics)),
        ]
    return [*routes, Route("/v2/{rest:path}", Endpoint("", _nothing_here))]


class _Probes:
    """What clients ask before they infer."""

    def __init__(self, detector: Detector, model: ModelDescription) -> None:
        self._detector = detector
        self._model = model

    async def server(self, _request: Request) -> Response:
        return json_response(server_metadata())

    async def live(self, _request: Request) -> Response:
        if not self._detector.live:
            raise OipRefused(NOT_ALIVE, "the engine fails again and again")
        return json_response({"live": True})

    async def ready(self, _request: Request) -> Response:
        if not self._detector.ready:
            raise OipRefused(NOT_READY, self._detector.not_ready_reason)
        return json_response({"ready": True})

    async def model_ready(self, request: Request) -> Response:
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


class _RepositoryPaths:
    """What operators ask of the model repository."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._limits = BodyLimits.of(settings)

    async def index(self, request: Request) -> Response:
        asked = read_object(await self._body(request))
        entries = self._repository.index(ready_only=read_flag(asked, "ready"))
        return json_response([asdict(entry) for entry in entries])

    async def load(self, request: Request) -> Response:
        parameters = read_repository_parameters(await self._body(request))
        await self._repository.load(request.path_params["model"], parameters)
        return json_response({})

    async def unload(self, request: Request) -> Response:
        parameters = read_repository_parameters(await self._body(request))
        await self._repository.unload(request.path_params["model"], parameters)
        return json_response({})

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.headers, request.receive, self._limits)


class _Infer:
    """POST .../infer."""

    def __init__(
        self, detector: Detector, model: ModelDescription, settings: Settings, bodies: BodyMemory
    ) -> None:
        self._model = model
        self._bodies = bodies
        self._inference = Inference(detector, model)
        self._limits = BodyLimits.of(settings)
        self._max_images = settings.max_files

    async def answer(self, request: Request) -> Response:
        with self._bodies.account() as account:
            return await self._answer(request, account)

    async def _answer(self, request: Request, account: BodyAccount) -> Response:
        started = time.monotonic()
        timeout_s = parse_timeout_s(request.headers.get(TIMEOUT_HEADER))
        deadline = None if timeout_s is None else started + timeout_s
        priority = parse_priority(request.headers.get(PRIORITY_HEADER))
        self._model.check(*_model_of(request))
        asked = await self._read(request, deadline, account)
        arrival = Arrival(
            request_id=request_id_of(request.scope),
            started=started,
            deadline=deadline,
            priority=priority,
            read_ms=(time.monotonic() - started) * 1000,
        )
        work = self._inference.run(asked, arrival, write_answer)
        body, json_length = await unless_client_leaves(work, request.scope, request.receive)
        if json_length is None:
            return Response(body, media_type="application/json")
        headers = {HEADER_LENGTH: str(json_length)}
        return Response(body, headers=headers, media_type="application/octet-stream")

    async def _read(
        self, request: Request, deadline: float | None, account: BodyAccount
    ) -> InferRequest:
        headers = request.headers
        received = await read_body(headers, request.receive, self._limits, deadline, account)
        encoding = headers.get("content-encoding", "")
        body = await inflate_body(received, encoding, self._limits.max_bytes)
        if body is not received:
            account.take(len(body))
        return read_request(body, headers.get(HEADER_LENGTH), self._max_images)


async def _nothing_here(request: Request) -> Response:
    raise OipRefused(UNKNOWN_PATH, f"there is nothing at {request.url.path[:200]}")


def _model_of(request: Request) -> tuple[str, str]:
    """Name and version that the path names; empty where it does not."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")
