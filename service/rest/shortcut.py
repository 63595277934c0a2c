"""The way of POST /detect past the router and the layers that FastAPI puts before every route.

It is the one request that comes a thousand times a second. Guards and what every answer carries
lie before this; all other requests go the usual way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

RequestHandler = Callable[[Request], Awaitable[Response]]
ErrorAnswer = Callable[[Request, Exception], Awaitable[Response]]


class Shortcut:
    """Serves one path and method itself and hands everything else on."""

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        method: str,
        endpoint: RequestHandler,
        errors: dict[type[Exception], ErrorAnswer],
    ) -> None:
        """Wraps an application.

        Args:
            app: for everything else.
            path: that is served here.
            method: with which it is served here; others are the application's to refuse.
            endpoint: as the application's own route calls it.
            errors: how the exceptions that it means to raise are answered.
        """
        self._app = app
        self._path = path
        self._method = method
        self._endpoint = endpoint
        self._errors = errors
        self._expected = tuple(errors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if (
            scope["type"] != "http"
            or scope["path"] != self._path
            or scope["method"] != self._method
        ):
            await self._app(scope, receive, send)
            return
        scope["endpoint"], scope["path_params"] = self._endpoint, {}  # as a router says it
        request = Request(scope, receive, send)
        try:
            response = await self._endpoint(request)
        except self._expected as error:
            response = await self._answer_to(error)(request, error)
        await response(scope, receive, send)

    def _answer_to(self, error: Exception) -> ErrorAnswer:
        return next(self._errors[kind] for kind in type(error).__mro__ if kind in self._errors)
