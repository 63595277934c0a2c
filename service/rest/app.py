"""Builds the HTTP application: routes, error responses and middleware."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Union

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from service.access.api_keys import KeyRing
from service.access.api_keys import Scope as KeyScope
from service.core.detector import Detector
from service.core.formats import HUGGINGFACE, OUTPUT_FORMATS
from service.errors import DetectionError
from service.observability.metrics import Metrics
from service.observability.proxies import TrustedProxies
from service.observability.request_log import RequestLog
from service.rest.api_key_middleware import ApiKeyMiddleware
from service.rest.detection import DetectEndpoint
from service.rest.openapi import (
    API_LICENSE,
    API_SUMMARY,
    API_TITLE,
    OpenApiDocument,
    detect_description,
    detect_responses,
)
from service.rest.pages import add_page_routes
from service.rest.probes import add_probe_routes
from service.rest.problems import ProblemDetails, detection_problem, problem_response
from service.rest.request_context import RequestContext
from service.rest.schemas import Problem
from service.rest.unread_body import DiscardUnreadBody
from service.settings import Settings, SettingsError
from service.transport.http_body import BodyMemory
from service.transport.http_request import REQUEST_ID_HEADER, RequestRefused, request_id_of
from service.transport.openapi import RequestRoute, register_schemas
from service.transport.path_prefix import PathPrefix, is_below, normalized_prefix
from service.transport.route_access import require, required_scope

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(  # noqa: PLR0913, PLR0917 - everything that shares the port
    detector: Detector,
    settings: Settings,
    keys: KeyRing | None = None,
    request_log: RequestLog | None = None,
    extra_routes: Sequence[BaseRoute] = (),
    bodies: BodyMemory | None = None,
    probe_paths: Sequence[str] = (),
) -> FastAPI:
    """Builds the HTTP application around a detector.

    Args:
        detector: the caller starts and stops it.
        settings: limits, and whether /metrics is served here or on its own port.
        keys: API keys that requests must present; None: no key is required.
        request_log: follows each request; None: one that neither logs nor traces.
        extra_routes: of other adapters, served on the same port.
        bodies: counts the bodies of all adapters; None: a count of its own.
        probe_paths: of health checks among the extra routes.

    Returns:
        An ASGI application.
    """
    app = FastAPI(
        title=API_TITLE,
        summary=API_SUMMARY,
        license_info=API_LICENSE,
        servers=[{"url": "."}],
        openapi_url=None,  # `pages` serves the document and a page without inline scripts
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # The service traces and counts requests itself. Versions without this argument ignore it.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    detect_route = _add_detect_route(app, detector, settings, bodies)
    document = OpenApiDocument(
        app, detect_route, detector, settings, keys_required=keys is not None
    )
    add_probe_routes(app, detector, settings)
    add_page_routes(app, document)
    app.router.routes.extend(extra_routes)
    app.add_exception_handler(DetectionError, _detection_error)
    app.add_exception_handler(RequestRefused, _refusal)
    app.add_exception_handler(HTTPException, _http_error)
    context = partial(
        RequestContext, request_log=request_log or RequestLog(), probe_paths=probe_paths
    )
    _add_middleware(app, detector.metrics, settings, keys, context)
    return app


def _add_detect_route(
    app: FastAPI, detector: Detector, settings: Settings, bodies: BodyMemory | None
) -> RequestRoute:
    endpoint = DetectEndpoint(detector, settings, bodies or BodyMemory(settings.max_bodies_bytes))
    schemas = tuple(schema for each in OUTPUT_FORMATS.values() for schema in each.schemas)
    route = RequestRoute(
        "/detect",
        endpoint.respond,
        methods=["POST"],
        operation_id="detect",
        summary="Detect objects in an image",
        description=detect_description(settings),
        response_model=Union[schemas],  # noqa: UP007 - of a tuple
        responses=detect_responses(),
    )
    # Hugging Face's clients post to the URL that they are given as model: the service's own.
    huggingface = RequestRoute(
        "/",
        partial(endpoint.respond_in, HUGGINGFACE),
        methods=["POST"],
        include_in_schema=False,
    )
    app.router.routes += [require(KeyScope.DETECT, each) for each in (route, huggingface)]
    register_schemas(route, Problem)
    return route


def _add_middleware(
    app: FastAPI,
    metrics: Metrics,
    settings: Settings,
    keys: KeyRing | None,
    context: Callable[[ASGIApp], RequestContext],
) -> None:
    """Adds the layers around every request, from the inside out."""
    if keys is not None:
        app.add_middleware(
            ApiKeyMiddleware,
            keys=keys,
            metrics=metrics,
            required_scope=partial(required_scope, app.router.routes),
        )
    if settings.cors_origins is not None:  # outside the key check: a preflight carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After", "Server-Timing", "traceparent"],
        )
    app.add_middleware(context)
    app.add_middleware(DiscardUnreadBody)
    _serve_below_a_prefix(app, settings)


def _serve_below_a_prefix(app: FastAPI, settings: Settings) -> None:
    """Adds the layer that removes a path prefix, where there may be one.

    Raises:
        SettingsError: if the prefix is also the beginning of the service's own paths.
    """
    root_path = normalized_prefix(settings.root_path or "") or ""
    own_paths = [getattr(route, "path", "") for route in app.router.routes]
    if root_path and any(is_below(path, root_path) for path in own_paths):
        raise SettingsError(f"root_path={root_path!r}: the service has paths of its own there")
    if root_path or settings.trusted_proxies:
        app.add_middleware(
            PathPrefix,
            root_path=root_path,
            proxies=TrustedProxies(settings.trusted_proxies),
            own_paths=own_paths,
        )


async def _detection_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DetectionError)
    return detection_problem(error, request_id_of(request.scope))


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    problem = ProblemDetails(error.status, error.code, error.detail)
    return problem_response(problem, request_id_of(request.scope))


async def _http_error(request: Request, error: Exception) -> Response:
    """Wrong paths and methods, as problem+json like every other error."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    details = {
        404: f"there is nothing at {path}; POST an image to /detect, or see /docs",
        405: f"{path} does not accept {method}",
    }
    problem = ProblemDetails(
        error.status_code,
        _CODES.get(error.status_code, "http_error"),
        details.get(error.status_code, error.detail),
    )
    return problem_response(problem, request_id_of(request.scope), error.headers)
