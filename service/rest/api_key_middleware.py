"""API keys over HTTP: asks for a key before anything of a request is read.

Everything needs the scope `detect` unless it stands in one of the lists here, so a new route is
closed until somebody opens it. Open is what a probe or a browser asks before it can have a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson
import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.api_keys import Forbidden, KeyRing, Unauthenticated, presented_key
from service.access.api_keys import Scope as KeyScope
from service.observability.request_log import RequestLog
from service.rest.problems import Problem, problem_response
from service.rest.request_context import RequestContext
from service.transport.http_request_id import request_id_of

_OPEN = re.compile(
    r"/(healthz|readyz|docs|openapi\.json|samples|v2/health/(live|ready)|(static|samples|swagger)/.*)?"
)
_METRICS = re.compile(r"/metrics(/.*)?")
_ADMIN = re.compile(r"/v2/repository/models/[^/]*/(load|unload)")
_OIP_PREFIX = "/v2"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="lite-detr"'}


class ApiKeyMiddleware:
    """Lets through what shows a key that opens it; the rest is answered with 401 or 403."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        needs: Callable[[str], KeyScope | None] | None = None,
    ) -> None:
        """Wraps an application that `RequestContext` is around.

        Args:
            app: an ASGI application.
            keys: that open it.
            needs: what a key must open for a path; `scope_needed` where not given.
        """
        self._app = app
        self._keys = keys
        self._needs = needs or scope_needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        needed = self._needs(scope["path"])
        if needed is not None:
            try:
                key = self._keys.check(presented_key(Headers(scope=scope).get), needed)
            except Unauthenticated as error:
                await _refusal(scope, Problem(401, "unauthenticated", str(error)))(
                    scope, receive, send
                )
                return
            except Forbidden as error:
                await _refusal(scope, Problem(403, "forbidden", str(error)))(scope, receive, send)
                return
            with structlog.contextvars.bound_contextvars(api_key=key.name):
                await self._app(scope, receive, send)
            return
        await self._app(scope, receive, send)


def require_metrics_key(app: ASGIApp, keys: KeyRing) -> ASGIApp:
    """The guard for an application that gives metrics at whatever path."""
    guard = ApiKeyMiddleware(app, keys, lambda _path: KeyScope.METRICS)
    return RequestContext(guard, RequestLog())


def scope_needed(path: str) -> KeyScope | None:
    """What a key must open for a path; None where none is needed."""
    if _OPEN.fullmatch(path):
        return None
    if _METRICS.fullmatch(path):
        return KeyScope.METRICS
    return KeyScope.ADMIN if _ADMIN.fullmatch(path) else KeyScope.DETECT


def _refusal(scope: Scope, problem: Problem) -> Response:
    headers = _CHALLENGE if problem.status == 401 else {}  # noqa: PLR2004 - Unauthorized
    if scope["path"].startswith(_OIP_PREFIX):
        body = orjson.dumps({"error": problem.detail})
        return Response(body, problem.status, headers, media_type="application/json")
    return problem_response(problem, request_id_of(scope), headers)
