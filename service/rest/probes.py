"""GET /healthz, /readyz, /v1/models and /metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from model.images.formats import supported_formats
from service.access.api_keys import Scope as KeyScope
from service.core.detector import Detector
from service.core.formats import offered_formats
from service.core.model_facts import model_facts
from service.observability.metrics import Metrics
from service.rest import examples, schemas
from service.rest.openapi import ok_response, unavailable_response
from service.rest.problems import ProblemDetails, problem_response
from service.settings import Settings
from service.transport.http_request import request_id_of
from service.transport.route_access import PUBLIC, require

_NO_STORE = {"Cache-Control": "no-store"}
_RETRY_AFTER_S = 5


def add_probe_routes(app: FastAPI, detector: Detector, settings: Settings) -> None:
    """Adds the routes of monitoring; /metrics unless it has a port of its own."""
    probes = _Probes(detector, settings)
    healthz, readyz = "Is the process live?", "Is the service ready for requests?"
    add_get_route(
        app,
        "/healthz",
        probes.health,
        PUBLIC,
        operation_id="live",
        summary=healthz,
        response_model=schemas.Health,
        responses=ok_response(healthz, {"status": "live"}) | unavailable_response("not_live"),
    )
    add_get_route(
        app,
        "/readyz",
        probes.readiness,
        PUBLIC,
        operation_id="ready",
        summary=readyz,
        response_model=schemas.Health,
        responses=ok_response(readyz, {"status": "ready"}) | unavailable_response("not_ready"),
    )
    add_get_route(
        app,
        "/v1/models",
        probes.models,
        KeyScope.DETECT,
        operation_id="models",
        summary="The served models",
        response_model=schemas.Models,
        responses=ok_response("The served models", examples.MODELS),
    )
    if settings.metrics_port is None:
        add_get_route(
            app,
            "/metrics",
            probes.metrics,
            KeyScope.METRICS,
            operation_id="metrics",
            summary="Prometheus metrics",
            response_class=PlainTextResponse,
            response_model=None,
            responses=ok_response("Prometheus metrics"),
        )


def readiness_route(path: str, detector: Detector) -> BaseRoute:
    """A public GET route that responds as /readyz does, for platforms that choose the path."""

    async def respond(request: Request) -> Response:
        if not detector.ready:
            return unavailable(request, "not_ready", detector.not_ready_reason)
        return JSONResponse({"status": "ready"}, headers=_NO_STORE)

    return require(PUBLIC, Route(path, respond))


def add_get_route(
    app: FastAPI,
    path: str,
    endpoint: Callable[..., Any],
    access: KeyScope | None,
    **declared: Any,
) -> None:
    """Adds a GET route that also serves HEAD, as load balancers and Starlette's routes expect.

    Args:
        app: to add the route to.
        path: of the route.
        endpoint: a function for FastAPI.
        access: the scope of API keys that it requires; `PUBLIC` for none.
        declared: for FastAPI's `add_api_route`.
    """
    app.add_api_route(path, endpoint, methods=["GET"], **declared)
    declared = {key: declared[key] for key in declared.keys() & {"response_model"}}
    app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False, **declared)
    for route in app.router.routes[-2:]:
        require(access, route)


class _Probes:
    """Handles the routes, from the detector's state at each request."""

    def __init__(self, detector: Detector, settings: Settings) -> None:
        self._detector = detector
        self._settings = settings

    async def health(self, request: Request, response: Response) -> Any:
        """200 if the process is live; 503 asks for a restart."""
        if not self._detector.live:
            return unavailable(request, "not_live", "the engine fails repeatedly")
        response.headers.update(_NO_STORE)
        return schemas.Health(status="live")

    async def readiness(self, request: Request, response: Response) -> Any:
        """200 if requests are accepted."""
        if not self._detector.ready:
            return unavailable(request, "not_ready", self._detector.not_ready_reason)
        response.headers.update(_NO_STORE)
        return schemas.Health(status="ready")

    async def models(self, response: Response) -> Any:
        """The served model, its engines, classes and limits."""
        settings = self._settings
        response.headers.update(_NO_STORE)
        limits = schemas.Limits(
            max_body_bytes=settings.max_body_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_files=settings.max_files,
            max_detections=self._detector.model.config.max_detections,
            max_tiles=settings.max_tiles,
            formats=list(supported_formats()),
        )
        offered = [each.name for each in offered_formats(explain=settings.explain)]
        facts = model_facts(self._detector)
        facts["input"]["jpeg_decoding"] = settings.jpeg_decoding
        entry = schemas.ModelEntry(**facts, limits=limits, output_formats=offered)
        return schemas.Models(models=[entry])

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics, in the text format that the Accept header prefers."""
        return _metrics(self._detector.metrics, request)


def create_metrics_app(metrics: Metrics) -> Starlette:
    """An application that serves only /metrics, for a port of its own."""

    async def respond(request: Request) -> Response:
        return _metrics(metrics, request)

    return Starlette(routes=[Route("/metrics", respond)])


def unavailable(request: Request, code: str, reason: str) -> Response:
    """The 503 of a probe, with the time until the next one is useful."""
    headers = {"Retry-After": str(_RETRY_AFTER_S)} | _NO_STORE
    return problem_response(
        ProblemDetails(503, code, reason), request_id_of(request.scope), headers
    )


def _metrics(metrics: Metrics, request: Request) -> Response:
    body, content_type = metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type} | _NO_STORE)
