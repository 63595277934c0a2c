"""HTTP routes whose errors, wrong methods and wrong paths have the protocol's form."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from service.access.api_keys import Scope as KeyScope
from service.errors import DetectionError
from service.observability.metrics import Metrics
from service.observability.request_scope import record_failure
from service.oip.errors import UNKNOWN_PATH, WRONG_METHOD, OipRefused
from service.oip.http_openapi import TAG
from service.transport.http_request import (
    ClientGone,
    OutcomeCounter,
    RequestRefused,
    request_id_of,
)
from service.transport.http_status import error_kind, retry_after_s
from service.transport.openapi import RequestHandler, RequestRoute
from service.transport.route_access import require

PROTOCOL = "oip_http"  # in metrics
_NO_STORE = {"Cache-Control": "no-store"}

_log = structlog.get_logger(__name__)


class OipRoute(RequestRoute):
    """A route whose errors have the protocol's form."""

    def get_route_handler(self) -> RequestHandler:
        """Returns the endpoint with its error handling."""
        endpoint: RequestHandler = self.endpoint

        async def respond(request: Request) -> Response:
            return await _respond(endpoint, request)

        return respond


def oip_route(
    method: str,
    path: str,
    endpoint: RequestHandler,
    *,
    access: KeyScope | None,
    counted_by: Metrics | None = None,
    **declared: Any,
) -> list[BaseRoute]:
    """The routes of one path.

    Args:
        method: the one that the path accepts; GET accepts HEAD as well.
        path: may have parameters in braces.
        endpoint: handles a request; its errors become responses.
        access: the scope of API keys that it requires; `PUBLIC` for none.
        counted_by: counts the requests by outcome; None: they are not counted.
        declared: `summary` and more for OpenAPI, as for FastAPI's routes.
    """
    respond = endpoint if counted_by is None else _counted(endpoint, counted_by)
    operation_id = "oip_" + declared["summary"].lower().replace(" ", "_")
    if "{version}" in path:
        operation_id += "_version"
    described = OipRoute(
        path, respond, methods=[method], operation_id=operation_id, tags=[TAG], **declared
    )
    routes: list[BaseRoute] = [described]
    if method == "GET":
        routes.append(OipRoute(path, respond, methods=["HEAD"], include_in_schema=False))
    routes.append(Route(path, _WrongMethod(method, counted_by)))
    return [require(access, route) for route in routes]


class _WrongMethod:
    """ASGI application for the other methods of a path: 405 in the protocol's form."""

    def __init__(self, allowed: str, counted_by: Metrics | None) -> None:
        self._allowed = allowed
        self._metrics = counted_by

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"this path accepts {self._allowed}, not {scope['method']}"
        error = OipRefused(WRONG_METHOD, detail)
        if self._metrics is not None:
            self._metrics.count_request(PROTOCOL, error.code)
        await _refuse(error)(scope, receive, send)


class UnknownPath:
    """ASGI application for paths that do not exist: 404 in the protocol's form."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses one request."""
        path = Request(scope).url.path[:200]
        await _refuse(OipRefused(UNKNOWN_PATH, f"there is nothing at {path}"))(scope, receive, send)


def _counted(endpoint: RequestHandler, metrics: Metrics) -> RequestHandler:
    """Counts the requests of an endpoint by their outcome."""

    async def respond(request: Request) -> Response:
        with OutcomeCounter(metrics, PROTOCOL):
            return await endpoint(request)

    return respond


def json_response(content: object) -> Response:
    """A JSON response that caches must not store."""
    return Response(orjson.dumps(content), media_type="application/json", headers=_NO_STORE)


async def _respond(endpoint: RequestHandler, request: Request) -> Response:
    try:
        return await endpoint(request)
    except (ClientGone, asyncio.CancelledError):
        raise
    except OipRefused as error:
        return _refuse(error)
    except RequestRefused as error:
        return _error(error.status, error.code, error.detail)
    except DetectionError as error:
        wait_s = retry_after_s(error)
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        return _error(error_kind(error).status, error.code, error.detail, headers)
    except Exception:
        _log.exception("unexpected error", request_id=request_id_of(request.scope))
        return _error(500, "internal", "An unexpected error.")


def _refuse(error: OipRefused) -> Response:
    return _error(error.kind.http_status, error.code, error.detail)


def _error(
    status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error in the protocol's form; its code is only recorded for the log."""
    record_failure(code, detail)
    return Response(
        orjson.dumps({"error": detail}),
        status,
        dict(headers or {}) | _NO_STORE,
        media_type="application/json",
    )
