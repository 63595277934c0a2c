"""Puts the REST adapter together: routes, error answers and what every answer carries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from model.weights.info import ModelInfo
from service.access.api_keys import KeyRing
from service.core.detector import Detector
from service.errors import DetectionError
from service.observability.request_log import RequestLog
from service.rest.api_key_middleware import ApiKeyMiddleware
from service.rest.detection import DetectEndpoint
from service.rest.openapi import describe_api
from service.rest.pages import page_routes
from service.rest.probes import ProbeEndpoints
from service.rest.problems import (
    Problem,
    detection_problem,
    problem_response,
    unexpected_problem,
)
from service.rest.request_context import RequestContext
from service.rest.shortcut import ErrorAnswer, RequestHandler, Shortcut
from service.rest.unread_body import DiscardUnreadBody
from service.settings import Settings
from service.transport.http_body import BodyMemory, ClientGone, RequestRefused
from service.transport.http_request_id import REQUEST_ID_HEADER, request_id_of

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(  # noqa: PLR0913, PLR0917 - all that shares the port
    detector: Detector,
    settings: Settings,
    keys: KeyRing | None = None,
    request_log: RequestLog | None = None,
    extra_routes: Sequence[BaseRoute] = (),
    bodies: BodyMemory | None = None,
) -> FastAPI:
    """Builds the HTTP application around a detector.

    Args:
        detector: the core; its start and stop are not this adapter's business.
        settings: limits, and whether /metrics is served here or on its own port.
        keys: that requests must show; None: no key is asked for.
        request_log: follows each request; None: one that logs and traces nothing.
        extra_routes: of other adapters, served by the same port.
        bodies: what the bodies of all adapters together may hold; None: a count of its own.

    Returns:
        An ASGI application.
    """

    @lru_cache(maxsize=1)
    def describe(model: ModelInfo) -> dict[str, Any]:
        return describe_api(model, settings)

    # Our routes read raw bodies and describe themselves: FastAPI's own description is not used.
    app = _Application(
        title="Lite DETR Serving", openapi_url=None, docs_url=None, redirect_slashes=False
    )
    app.openapi = lambda: describe(detector.model)  # type: ignore[method-assign]
    bodies = bodies or BodyMemory(settings.max_bodies_bytes)
    detect = DetectEndpoint(detector, settings, bodies)
    probes = ProbeEndpoints(detector, settings)
    app.add_route("/detect", detect.answer, methods=["POST"])
    app.add_route("/healthz", probes.health)
    app.add_route("/readyz", probes.readiness)
    app.add_route("/v1/models", probes.models)
    if settings.metrics_port is None:
        app.add_route("/metrics", probes.metrics)
    app.router.routes.extend(page_routes(app.openapi))
    app.router.routes.extend(extra_routes)
    errors: dict[type[Exception], ErrorAnswer] = {
        DetectionError: _answer_detection_error,
        RequestRefused: _answer_refusal,
    }
    for kind, answer in errors.items():
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_unexpected)
    app.layers = _layers(app.within_layers, detect.answer, errors, settings, keys, request_log)
    return app


def _layers(  # noqa: PLR0913, PLR0917 - what the layers need, from the inside out
    inner: ASGIApp,
    detect: RequestHandler,
    errors: dict[type[Exception], ErrorAnswer],
    settings: Settings,
    keys: KeyRing | None,
    request_log: RequestLog | None,
) -> ASGIApp:
    """What lies around every request."""
    app: ASGIApp = Shortcut(inner, path="/detect", method="POST", endpoint=detect, errors=errors)
    if keys is not None:
        app = ApiKeyMiddleware(app, keys)
    if settings.cors_origins is not None:  # before the guard: a preflight carries no key
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After", "Server-Timing", "traceparent"],
        )
    return DiscardUnreadBody(RequestContext(app, request_log or RequestLog()))


class _Silence(Response):
    """The answer for a client that is gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Says nothing."""


class _Application(FastAPI):
    """FastAPI with layers outside its own, so that what they answer pays for none of those."""

    layers: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, from the outermost layer inwards."""
        await self.layers(scope, receive, send)

    async def within_layers(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request that no layer answered."""
        await super().__call__(scope, receive, send)


async def _answer_detection_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DetectionError)
    return detection_problem(error, _id_of(request))


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    problem = Problem(error.status, error.code, error.detail)
    return problem_response(problem, _id_of(request))


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    """For what nobody meant to raise; it goes on to `RequestContext`, which logs it."""
    return _Silence() if isinstance(error, ClientGone) else unexpected_problem(_id_of(request))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Wrong paths and methods, in the same form as every other error."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    details = {
        404: f"there is nothing at {path}; POST a photo to /detect, or see /docs",
        405: f"{path} does not take {method}",
    }
    problem = Problem(
        error.status_code,
        _CODES.get(error.status_code, "http_error"),
        details.get(error.status_code, error.detail),
    )
    return problem_response(problem, _id_of(request), error.headers)


def _id_of(request: Request) -> str:
    return request_id_of(request.scope)
