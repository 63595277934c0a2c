"""What every HTTP answer carries, as pure ASGI: request id, trace context, security headers.

Pure ASGI, because wrappers that rebuild the request (BaseHTTPMiddleware) hide disconnects.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observability.request_log import RequestLog
from service.observability.request_scope import RequestScope
from service.observability.trace_context import TRACEPARENT, TRACESTATE
from service.rest.problems import Problem, problem_response, unexpected_problem
from service.transport.http_body import ClientGone
from service.transport.http_request_id import REQUEST_ID_HEADER

_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()
_TRACEPARENT = TRACEPARENT.encode()
_TRACESTATE = TRACESTATE.encode()
# Asked every few seconds by machines: not worth a log line or a span.
_PROBES = frozenset(("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"))

# Nothing but this server's own files: no inline script or style, no frame, no other host.
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
# As ASGI has them, so that no answer pays for their encoding.
_SECURITY_HEADERS = (
    (b"content-security-policy", _CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

# A connection beyond the limit may still ask how the service is, or else a flood of idle ones
# would look like a reason to restart it.
_PROBE_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_CROWDED = Problem(503, "too_many_connections", "the service has as many connections as it takes")
_CROWDED_HEADERS = {"Retry-After": "1"}

_log = structlog.get_logger(__name__)


class RequestContext:
    """Opens each request, names it, and turns what nobody expected into a 500.

    A request keeps the `X-Request-Id` that it came with, if that is a sane one, and stays in the
    trace that it came with. An unknown exception is logged whole and answered bare. One that came
    over a connection too many (`http_connection`) is refused, unless it is a probe.
    """

    def __init__(self, app: ASGIApp, request_log: RequestLog) -> None:
        """Wraps an application.

        Args:
            app: what answers.
            request_log: follows the requests.
        """
        self._app = app
        self._request_log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        names = _names_given(scope)
        with self._request_log.track(
            "http",
            scope["method"],
            path=path,
            request_id=next(iter(names[_REQUEST_ID]), None),
            traceparents=names[_TRACEPARENT],
            tracestates=names[_TRACESTATE],
            quiet=path in _PROBES,
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

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                _add_headers(message, names)
            await send(message)

        try:
            if scope["state"].get("crowded") and scope["path"] not in _PROBE_PATHS:
                await problem_response(_CROWDED, request.request_id, _CROWDED_HEADERS)(
                    scope, receive, send_named
                )
                return
            await self._app(scope, receive, send_named)
        except ClientGone:
            return
        except Exception:
            _log.exception("unexpected error", request_id=request.request_id)
            if request.status is None:
                bare = unexpected_problem(request.request_id)
                await bare(scope, receive, send_named)


def _names_given(scope: Scope) -> dict[bytes, list[str]]:
    """What a client calls its request, by header, in the order given."""
    names: dict[bytes, list[str]] = {_REQUEST_ID: [], _TRACEPARENT: [], _TRACESTATE: []}
    for name, value in scope["headers"]:
        if name in names:
            names[name].append(value.decode("latin-1"))
    return names


def _route(scope: Scope, path: str) -> str:
    """The pattern that a request matched, empty for none: nothing of a client's own making."""
    if "endpoint" not in scope:
        return ""
    if folder := scope.get("root_path"):
        return str(folder)
    for name, value in scope["path_params"].items():
        path = path.replace(f"/{value}", f"/{{{name}}}")
    return path


def _add_headers(message: Message, names: Iterable[tuple[str, str]]) -> None:
    """Adds the request's names and the security headers that the answer has not set itself."""
    headers = list(message.get("headers", ()))
    taken = {name for name, _ in headers}
    headers += [header for header in _SECURITY_HEADERS if header[0] not in taken]
    headers += [(name.lower().encode(), value.encode()) for name, value in names]
    message["headers"] = headers
