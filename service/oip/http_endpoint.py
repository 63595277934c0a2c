"""One HTTP endpoint: its method, its errors as the protocol tells them, and how it is counted.

Endpoints are ASGI applications of their own, so that a wrong method or path is answered in the
protocol's form and not in that of the routes beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import DetectionError
from service.observability.metrics import Metrics
from service.oip.errors import WRONG_METHOD, OipRefused
from service.transport.http_request import ClientGone, RequestRefused, request_id_of
from service.transport.http_status import error_kind, retry_after_s

PROTOCOL = "oip_http"  # in metrics
_NO_STORE = {"Cache-Control": "no-store"}

_log = structlog.get_logger(__name__)


class Endpoint:
    """Answers one path."""

    def __init__(
        self,
        method: str,
        answer: Callable[[Request], Awaitable[Response]],
        counted_by: Metrics | None = None,
    ) -> None:
        """Prepares an endpoint.

        Args:
            method: the one it takes; GET takes HEAD as well; empty: all.
            answer: to a request; errors that it raises are told to the client.
            counted_by: where its requests are counted; None: nowhere.
        """
        self._method = method
        self._answer = answer
        self._metrics = counted_by

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request.

        Raises:
            ClientGone: where nobody is left to be answered.
        """
        request = Request(scope, receive)
        response, outcome = None, "cancelled"
        try:
            response, outcome = await self._respond(request)
        finally:
            if self._metrics is not None:
                self._metrics.count_request(PROTOCOL, outcome)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> tuple[Response, str]:
        try:
            self._check_method(request.method)
            return await self._answer(request), "ok"
        except (ClientGone, asyncio.CancelledError):
            raise
        except OipRefused as error:
            return _error(error.kind.http_status, error.detail), error.kind.code
        except RequestRefused as error:
            return _error(error.status, error.detail), error.code
        except DetectionError as error:
            wait_s = retry_after_s(error)
            headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
            return _error(error_kind(error).status, error.detail, headers), error.code
        except Exception:
            _log.exception("unexpected error", request_id=request_id_of(request.scope))
            return _error(500, "An unexpected error."), "internal"

    def _check_method(self, method: str) -> None:
        taken = {"GET", "HEAD"} if self._method == "GET" else {self._method}
        if self._method and method not in taken:
            raise OipRefused(WRONG_METHOD, f"this path takes {self._method}, not {method}")


def json_response(content: object) -> Response:
    """A JSON answer that nobody may keep."""
    return Response(orjson.dumps(content), media_type="application/json", headers=_NO_STORE)


def _error(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps({"error": detail}),
        status,
        dict(headers or {}) | _NO_STORE,
        media_type="application/json",
    )
