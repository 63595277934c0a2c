"""What every HTTP answer carries, as pure ASGI: request id, trace context, security headers.

Pure ASGI, because wrappers that rebuild the request (BaseHTTPMiddleware) hide disconnects.
"""

from __future__ import annotations

import random
import re

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http_request import ClientGone
from service.rest.problems import Problem, problem_response

REQUEST_ID_HEADER = "X-Request-Id"
# What a client may call its request: visible ASCII without quotes or commas, safe in any log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# W3C Trace Context, version 00: version-trace_id-parent_id-flags; all-zero ids are invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

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

_log = structlog.get_logger(__name__)


def request_id_of(scope: Scope) -> str:
    """The id that `RequestContext` gave to a request."""
    request_id: str = scope["state"]["request_id"]
    return request_id


class RequestContext:
    """Names each request, echoes its trace context and turns what nobody expected into a 500.

    A request keeps the `X-Request-Id` that it came with, if that is a sane one. An unknown
    exception is logged whole and answered bare.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _sane(_REQUEST_ID, headers.get(REQUEST_ID_HEADER)) or _new_id()
        traceparent = _sane(_TRACEPARENT, headers.get("traceparent"))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                answer = list(message.get("headers", ()))
                taken = {name for name, _ in answer}
                answer += [header for header in _SECURITY_HEADERS if header[0] not in taken]
                answer.append((b"x-request-id", request_id.encode()))
                if traceparent is not None:
                    answer.append((b"traceparent", traceparent.encode()))
                message["headers"] = answer
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientGone:
            return
        except Exception:
            _log.exception("unexpected error", request_id=request_id)
            if not started:
                problem = Problem(500, "internal", "An unexpected error.")
                bare = problem_response(problem, request_id)
                await bare(scope, receive, send_named)


def _new_id() -> str:
    """32 hex digits; to tell requests apart, not to keep a secret: no system call for it."""
    return f"{random.getrandbits(128):032x}"


def _sane(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value is not None and pattern.fullmatch(value) else None
