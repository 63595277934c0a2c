"""ASGI middleware around every HTTP request: request id, trace context, security headers.

Pure ASGI, because BaseHTTPMiddleware wraps the request and hides disconnects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observability.request_log import RequestLog, RequestOrigin
from service.observability.request_scope import RequestScope
from service.observability.trace_context import TRACEPARENT, TRACESTATE
from service.rest.problems import (
    ProblemDetails,
    problem_response,
    refusal_response,
    unexpected_problem,
)
from service.transport.http_request import REQUEST_ID_HEADER, ClientGone, RequestRefused
from service.transport.route_access import responding_route

_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()
_TRACEPARENT = TRACEPARENT.encode()
_TRACESTATE = TRACESTATE.encode()

# Only this server's own files: no inline script or style, no frame, no other host.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
# Encoded once, as ASGI expects them.
_SECURITY_HEADERS = (
    (b"content-security-policy", _CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

# Probes are served on connections over the limit too; otherwise a flood of idle connections
# would get the service restarted.
_PROBE_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_METRICS_PATH = "/metrics"
_TOO_MANY = ProblemDetails(503, "too_many_connections", "the service has too many open connections")
_TOO_MANY_HEADERS = {"Retry-After": "1"}
# No path of ours has one, and a route's pattern can match in spite of a line feed at its end.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_INVALID_PATH = ProblemDetails(404, "not_found", "the path contains a control character")

_log = structlog.get_logger(__name__)


class RequestContext:
    """Opens each request in the request log, gives it an id, and turns exceptions into a 500.

    A valid `X-Request-Id` of the client is kept, as is its trace context. Unexpected exceptions
    are logged with their traceback; the response says nothing about them. A request that
    `http_connection` marks is refused: one on a connection over the limit, unless it is a probe,
    and one whose head is not acceptable.
    """

    def __init__(
        self, app: ASGIApp, request_log: RequestLog, probe_paths: Iterable[str] = ()
    ) -> None:
        """Wraps an application.

        Args:
            app: handles the requests.
            request_log: follows them.
            probe_paths: of health checks, in addition to the service's own.
        """
        self._app = app
        self._request_log = request_log
        self._probe_paths = _PROBE_PATHS.union(probe_paths)
        # Polled every few seconds: no log line and no span.
        self._polled_paths = self._probe_paths | {_METRICS_PATH}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        ids = _ids_given(scope)
        with self._request_log.track(
            "http",
            scope["method"],
            path=path,
            request_id=next(iter(ids[_REQUEST_ID]), None),
            traceparents=ids[_TRACEPARENT],
            tracestates=ids[_TRACESTATE],
            origin=_origin(scope),
            quiet=path in self._polled_paths,
        ) as request:
            try:
                await self._serve(request, scope, receive, send)
            finally:
                request.route = _route(scope, path)

    async def _serve(
        self, request: RequestScope, scope: Scope, receive: Receive, send: Send
    ) -> None:
        scope.setdefault("state", {})["request_id"] = request.request_id
        names = ((REQUEST_ID_HEADER, request.request_id), *request.trace.headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                _add_headers(message, names)
            await send(message)

        try:
            is_probe = scope["path"] in self._probe_paths
            app = _refusal(scope, request.request_id, is_probe=is_probe) or self._app
            await app(scope, receive, send_with_headers)
        except ClientGone:
            return
        except Exception:
            _log.exception("unexpected error", request_id=request.request_id)
            if request.status is None:
                response = unexpected_problem(request.request_id)
                await response(scope, receive, send_with_headers)


def _refusal(scope: Scope, request_id: str, *, is_probe: bool) -> Response | None:
    """The response to a request that no route is to see; None for one that is acceptable."""
    state = scope["state"]
    if state.get("over_connection_limit") and not is_probe:
        return problem_response(_TOO_MANY, request_id, _TOO_MANY_HEADERS)
    refused: RequestRefused | None = state.get("refused")
    if refused is not None:
        problem = ProblemDetails(refused.status, refused.code, refused.detail)
        return refusal_response(scope, problem)
    if _CONTROL_CHARACTER.search(scope["path"]):
        return refusal_response(scope, _INVALID_PATH)
    return None


def _origin(scope: Scope) -> RequestOrigin:
    def values(name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]

    def peer() -> str:
        found = scope.get("client")
        return str(found[0]) if found else ""

    return RequestOrigin(peer, values)


def _ids_given(scope: Scope) -> dict[bytes, list[str]]:
    """The client's request ids and trace contexts by header, in the order given."""
    ids: dict[bytes, list[str]] = {_REQUEST_ID: [], _TRACEPARENT: [], _TRACESTATE: []}
    for name, value in scope["headers"]:
        if name in ids:
            ids[name].append(value.decode("latin-1"))
    return ids


def _route(scope: Scope, path: str) -> str:
    """The path pattern that a request matched, empty for none: never text of the client."""
    if "endpoint" not in scope:
        return ""
    if folder := scope.get("root_path"):
        return str(folder)
    if not scope["path_params"]:
        return path
    # FastAPI names its own routes, but not those of Starlette.
    route = scope.get("route") or responding_route(scope["app"].routes, scope)
    return str(getattr(route, "path_format", ""))


def _add_headers(message: Message, names: Iterable[tuple[str, str]]) -> None:
    """Adds the request's ids, and the security headers that the response has not set itself."""
    headers = list(message.get("headers", ()))
    taken = {name for name, _ in headers}
    headers += [header for header in _SECURITY_HEADERS if header[0] not in taken]
    headers += [(name.lower().encode(), value.encode()) for name, value in names]
    message["headers"] = headers
