"""ASGI middleware of Ray's HTTP proxies: limits of bodies, and retries of lost requests.

client -> ProxyMiddleware -> Ray's router -> Replica

A replica that is killed loses the requests in flight; Ray answers them with a 500 of its own. A
detection changes nothing, so the middleware sends them to another replica. For that it keeps the
body, which it receives within the limits that the service has without Ray. The responses of a
replica carry `REPLICA_HEADER`, which those of Ray do not.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import structlog
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded, DetectionError, InvalidOptions
from service.observability.trace_context import new_request_id, valid_request_id
from service.ray_serve.retries import ATTEMPTS, pause_after
from service.rest.problems import ProblemDetails, detection_problem, problem_response
from service.rest.unread_body import DiscardUnreadBody
from service.settings import Settings, load_settings
from service.transport.http_body import BodyLimits, BodyMemory, read_body
from service.transport.http_request import (
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
    ClientGone,
    RequestRefused,
    parse_timeout_s,
)

REPLICA_HEADER = b"lite-detr-replica"
_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()
_TIMEOUT = TIMEOUT_HEADER.lower().encode()
_OWN_PATHS = "/-/"  # of Ray's proxies: /-/healthz and /-/routes
_LIMITS_VARIABLE = "LITE_DETR_RAY_PROXY_LIMITS"  # from `lite-detr ray` to the proxies
_GRACE_SECONDS = 1.0  # after the deadline, in which the replica reports it itself
_NOT_FOUND = 404
_FAILURES = range(500, 600)
_NOT_DEPLOYED = ProblemDetails(503, "not_ready", "the service is not deployed, or shuts down")
_LOST = ProblemDetails(
    503, "replica_lost", "replicas ended while they handled the request; try again later"
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ProxyLimits:
    """What the middleware needs of the settings."""

    body: BodyLimits
    max_bodies_bytes: int
    request_timeout_ms: float

    @classmethod
    def of(cls, settings: Settings) -> ProxyLimits:
        """The limits in the settings."""
        return cls(BodyLimits.of(settings), settings.max_bodies_bytes, settings.request_timeout_ms)


def proxy_variables(limits: ProxyLimits) -> dict[str, str]:
    """The environment variables with which Ray's proxies use the middleware."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.{middlewares.__name__}",
        _LIMITS_VARIABLE: json.dumps(asdict(limits)),
    }


def middlewares() -> list[Middleware]:
    """The middleware with the limits of the environment; Ray's proxies call it once."""
    text = os.environ.get(_LIMITS_VARIABLE)
    if text is None:  # of a cluster that `lite-detr ray` has not started
        limits = ProxyLimits.of(load_settings())
    else:
        values = json.loads(text)
        limits = ProxyLimits(**values | {"body": BodyLimits(**values["body"])})
    return [Middleware(ProxyMiddleware, limits=limits)]


class ProxyMiddleware:
    """Receives bodies within limits, and retries requests whose replica ended."""

    def __init__(self, app: ASGIApp, limits: ProxyLimits) -> None:
        """Wraps the application of Ray's proxy."""
        self._ray = app
        self._limits = limits
        self._bodies = BodyMemory(limits.max_bodies_bytes)
        self._app = DiscardUnreadBody(self._serve)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http" or scope["path"].startswith(_OWN_PATHS):
            await self._ray(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            with self._bodies.account() as account:
                body = await read_body(headers, receive, self._limits.body, None, account)
                response = await self._retry(scope, body, receive, send)
        except ClientGone:
            return
        except DetectionError as error:
            response = detection_problem(error, _request_id(headers))
        except RequestRefused as error:
            problem = ProblemDetails(error.status, error.code, error.detail)
            response = problem_response(problem, _request_id(headers))
        if response is not None:
            response.headers.setdefault(REQUEST_ID_HEADER, _request_id(headers))
            await response(scope, receive, send)

    async def _retry(
        self, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> Response | None:
        """Sends a request to replicas until one responds.

        Returns:
            None if the response was sent, otherwise the one to send.

        Raises:
            ClientGone: if the client disconnected.
            DeadlineExceeded: if no replica responded before the deadline.
        """
        headers = Headers(scope=scope)
        seconds = self._seconds(headers)
        deadline = time.monotonic() + seconds
        for attempt in ATTEMPTS:
            outcome, body_then_rest = _Attempt(send), _Replay(body, receive)
            await self._send_once(scope, body_then_rest, outcome, deadline)
            if outcome.started:
                return None
            if body_then_rest.client_left:
                raise ClientGone
            if (
                outcome.status == _NOT_FOUND
            ):  # Ray knows no application; replicas have their own 404
                return problem_response(_NOT_DEPLOYED, _request_id(headers), {"Retry-After": "5"})
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"no result within {seconds * 1000:.0f} ms")
            _log.warning("retrying a lost request", attempt=attempt, status=outcome.status)
            await pause_after(attempt)
            left_ms = max(1.0, (deadline - time.monotonic()) * 1000)
            scope = _with_header(scope, _TIMEOUT, f"{left_ms:.3f}".encode())
        return problem_response(_LOST, _request_id(headers), {"Retry-After": "1"})

    async def _send_once(
        self, scope: Scope, receive: Receive, outcome: _Attempt, deadline: float
    ) -> None:
        """Sends a request to a replica; one that is lost leaves `outcome` without a start."""
        # Some time after the deadline, as the replica reports it itself. Ray's proxy does not pass
        # the cancellation of the timeout on, but returns.
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic()) + _GRACE_SECONDS):
                await self._ray(scope, receive, outcome.send)
        except TimeoutError:
            if outcome.started:
                raise
        except Exception as error:
            if outcome.started:
                raise
            _log.warning("Ray's proxy failed", error=f"{type(error).__name__}: {error}")

    def _seconds(self, headers: Headers) -> float:
        """Until the deadline of a request; a header that is invalid is left to the replica."""
        longest = self._limits.request_timeout_ms / 1000
        try:
            own = parse_timeout_s(headers.get(TIMEOUT_HEADER))
        except InvalidOptions:
            return longest
        return longest if own is None else min(longest, own)


class _Attempt:
    """The response of one attempt: passed on once it is certain that it is not Ray's error.

    Attributes:
        started: whether it was passed on.
        status: of the response; None before it begins.
    """

    def __init__(self, send: Send) -> None:
        self.started = False
        self.status: int | None = None
        self._send = send
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        """Takes a message of the response."""
        if self.started:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self.status, self._start = message["status"], message
        elif self._start is not None:
            ours, headers = _without_marker(self._start.get("headers", ()))
            if ours or self._start["status"] not in (_NOT_FOUND, *_FAILURES):
                # Set before: a client that leaves meanwhile is no lost request.
                self.started = True
                await self._send({**self._start, "headers": headers})
                await self._send(message)


class _Replay:
    """An ASGI channel with the whole body, then with what the client does.

    Attributes:
        client_left: whether the client has disconnected.
    """

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.client_left = False
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        """Returns the next message."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self.client_left |= message["type"] == "http.disconnect"
        return message


def _without_marker(
    headers: Iterable[tuple[bytes, bytes]],
) -> tuple[bool, list[tuple[bytes, bytes]]]:
    """Whether a replica responded, and its headers; Ray adds a second request id."""
    ours, kept, has_id = False, [], False
    for name, value in headers:
        key = bytes(name).lower()
        if key == REPLICA_HEADER:
            ours = True
        elif key != _REQUEST_ID or not has_id:
            has_id |= key == _REQUEST_ID
            kept.append((name, value))
    return ours, kept


def _with_header(scope: Scope, name: bytes, value: bytes) -> Scope:
    headers = [(key, each) for key, each in scope["headers"] if key != name]
    return {**scope, "headers": [*headers, (name, value)]}


def _request_id(headers: Headers) -> str:
    return valid_request_id(headers.get(REQUEST_ID_HEADER)) or new_request_id()
