"""API keys over HTTP: checks the key of a request before anything else of it is read.

Each route declares the scope that it requires (`service.transport.route_access`); one that declares
nothing requires `admin`.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.api_keys import Forbidden, KeyRing, Unauthenticated, presented_key
from service.access.api_keys import Scope as KeyScope
from service.observability.metrics import Metrics
from service.observability.request_log import RequestLog
from service.observability.request_scope import current_scope
from service.rest.problems import ProblemDetails, refusal_response
from service.rest.request_context import RequestContext

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="lite-detr"'}


class ApiKeyMiddleware:
    """ASGI middleware: responds with 401 or 403 to requests without a sufficient key."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        metrics: Metrics,
        required_scope: Callable[[Scope], KeyScope | None],
    ) -> None:
        """Wraps an application; must be inside `RequestContext`.

        Args:
            app: an ASGI application.
            keys: the accepted keys.
            metrics: count the refused requests.
            required_scope: returns the key scope that a request (its ASGI scope) requires; None:
                no key.
        """
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._required_scope = required_scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        required = self._required_scope(scope)
        if required is not None:
            try:
                key = self._keys.check(presented_key(Headers(scope=scope).get), required)
            except Unauthenticated as error:
                refusal = self._refuse(scope, ProblemDetails(401, "unauthenticated", str(error)))
                await refusal(scope, receive, send)
                return
            except Forbidden as error:
                refusal = self._refuse(scope, ProblemDetails(403, "forbidden", str(error)))
                await refusal(scope, receive, send)
                return
            if (request := current_scope()) is not None:
                request.key_name = key.name
            with structlog.contextvars.bound_contextvars(api_key=key.name):
                await self._app(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope, problem: ProblemDetails) -> Response:
        self._metrics.keys_refused.labels("http", problem.code).inc()
        headers = _CHALLENGE if problem.status == 401 else {}  # noqa: PLR2004 - Unauthorized
        return refusal_response(scope, problem, headers)


def require_metrics_key(app: ASGIApp, keys: KeyRing | None, metrics: Metrics) -> ASGIApp:
    """Wraps an application that serves metrics; each path requires the scope `metrics`.

    Args:
        app: an ASGI application.
        keys: the accepted keys; None: no key is required.
        metrics: count the refused requests.
    """
    if keys is not None:
        app = ApiKeyMiddleware(app, keys, metrics, lambda _scope: KeyScope.METRICS)
    return RequestContext(app, RequestLog())
