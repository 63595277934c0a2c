"""One HTTP connection of `http_server`, with limits of time and size that uvicorn does not have.

Without them a client that sends header bytes slowly, never reads a response or pipelines thousands
of requests would hold a connection and its memory indefinitely.

This overrides internals of uvicorn: pyproject.toml limits its version, and
tests/service/transport/test_uvicorn_internals.py checks what is used here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.transport.http_parser import RequestParser
from service.transport.listen_queue import has_unread

_MAX_HEAD_BYTES = 64 * 1024  # of a request line with its headers
_CONTINUE = b"HTTP/1.1 100 "
_MAX_PIPELINED = 32  # requests that wait for the current one
# A connection that is idle when the server closes may have a request on the wire already.
_LAST_REQUEST_SECONDS = 0.2
_RECHECK_SECONDS = 0.005
# A connection over the limit replaces one that has been idle for longer than this.
_IDLE_SECONDS = 5.0
# Connections over the limit that get a 503; further ones are closed without a response.
_MAX_OVER_LIMIT = 64


@dataclass
class ConnectionLimits:
    """The limits of all connections of one server, and whether it is closing."""

    head_timeout_seconds: float
    send_timeout_seconds: float
    max_connections: int
    closing: bool = False  # no further request on any connection


class LimitedConnection(HttpToolsProtocol):
    """A connection within limits.

    A connection over the limit replaces the one that has been idle longest. If none is idle, its
    request is marked with `over_connection_limit` in the ASGI scope's state for the application to
    refuse, and the connection ends after it.
    """

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes uvicorn's arguments."""
        super().__init__(*args, **kwargs)
        self.parser: RequestParser = RequestParser(self)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = False
        self._heads_begun = 0
        self._send_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._progress = self._previous_progress = 0
        self._idle_since = 0.0
        self.lost = False
        self.on_lost: Callable[[], None] | None = None  # see http_request.Connection
        self._over_limit = False
        self._ignores_input = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Applies the connection limit, and starts the timeout of the first request's head."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._apply_connection_limit()
        if self.limits.closing:
            self.shutdown()
        self._start_head_timeout()
        self._check_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the timers, and notifies the request in flight."""
        self.lost = True
        if self.on_lost is not None:
            self.on_lost()
        self._end_head_timeout()
        if self._send_timer is not None:
            self._send_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Passes bytes to the parser, and counts those of an incomplete head."""
        if self._ignores_input:
            return
        was_between = self._between_requests()
        was_in_head, self._heads_begun = self._in_head, 0
        super().data_received(data)
        if self.transport.is_closing() or self._ignores_input:
            return
        between = self._between_requests()
        # Bytes before a head that began within `data` do not count towards that head.
        whole = was_in_head if not self._heads_begun else was_between and self._heads_begun == 1
        if (self._in_head and whole) or (between and not self._heads_begun):
            self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, "header_too_large", "the request's head is larger than 64 KiB")
        elif between and self._head_timer is None and self.timeout_keep_alive_task is None:
            self._start_head_timeout()

    def on_message_begin(self) -> None:
        """Begins a head.

        Raises:
            ValueError: for too many pipelined requests; httptools reports it as a parser error.
        """
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        self._in_head = True
        self._head_bytes = 0
        self._heads_begun += 1
        self._progress += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Ends a head."""
        self._in_head = False
        self._end_head_timeout()
        self.scope["state"]["connection"] = self
        if self._over_limit:
            self.scope["state"]["over_connection_limit"] = True
        super().on_headers_complete()
        _HeadBuffer(self.cycle)
        if self.limits.closing or self._over_limit:
            self.cycle.keep_alive = False
        if self.parser.is_connect():  # the client sends the bytes of a tunnel next
            self._ignores_input = True
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Ends a body, unless the parser stops at an `Upgrade` and will parse the body again."""
        if not self.parser.ignores_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses bytes that are not HTTP, after the responses to earlier requests."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self._is_broken_body():
            self._refuse(400, "malformed_request", "the request is not well-formed HTTP/1.1")
            return
        self._ignores_input = True
        cycle.keep_alive = False
        if cycle.more_body:  # of the broken request itself, whose response has begun
            self.transport.close()

    def shutdown(self) -> None:
        """Ends after the current request; an idle connection may still receive a last one."""
        if self._between_requests():
            self.loop.call_later(_LAST_REQUEST_SECONDS, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """As in uvicorn; a closing server then closes the connection."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.limits.closing and self._between_requests():
            self.transport.close()

    def resume_writing(self) -> None:
        """Notes that the client reads its response."""
        self._progress += 1
        super().resume_writing()

    def _apply_connection_limit(self) -> None:
        excess = len(self.connections) - self.limits.max_connections
        if excess <= 0:
            return
        now = self.loop.time()
        others = (
            other
            for other in self.connections
            if isinstance(other, LimitedConnection)
            and other._between_requests()
            and not other.transport.is_closing()
            and now - other._idle_since > _IDLE_SECONDS
        )
        longest_idle = min(others, key=lambda other: other._idle_since, default=None)
        if longest_idle is not None:
            longest_idle.transport.close()
        elif excess > _MAX_OVER_LIMIT:
            self.transport.abort()
        else:
            self._over_limit = True

    def _between_requests(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _is_broken_body(self) -> bool:
        """Whether the malformed bytes are the current request's, and it has no response yet."""
        cycle = self.cycle
        return cycle.more_body and not self.pipeline and not cycle.response_started

    def _close_if_idle(self) -> None:
        if self._in_head or self._head_bytes or not self._between_requests():
            return
        # On a busy machine timers fire before the event loop has polled its sockets.
        if has_unread(self.transport.get_extra_info("socket")):
            self.loop.call_later(_RECHECK_SECONDS, self._close_if_idle)
        else:
            self.transport.close()

    def _start_head_timeout(self) -> None:
        seconds = self.limits.head_timeout_seconds
        self._head_timer = self.loop.call_later(seconds, self._on_head_timeout)

    def _end_head_timeout(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            seconds = self.limits.head_timeout_seconds
            self._refuse(408, "header_timeout", f"the request's head took more than {seconds:g} s")
        else:
            self.transport.close()

    def _check_sending(self) -> None:
        """Closes the connection if the client has read nothing since the previous check."""
        unsent_bytes = self.transport.get_write_buffer_size()
        stalled = self._unsent_bytes and unsent_bytes >= self._unsent_bytes
        if stalled and self._progress == self._previous_progress:
            self.transport.abort()
            return
        self._unsent_bytes, self._previous_progress = unsent_bytes, self._progress
        seconds = self.limits.send_timeout_seconds
        self._send_timer = self.loop.call_later(seconds, self._check_sending)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Responds without an ASGI application, where there is no complete request, and closes."""
        self._end_head_timeout()
        self._ignores_input = True
        title = _TITLES[status]
        problem = {
            "type": f"urn:lite-detr:problem:{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "code": code,
        }
        body = orjson.dumps(problem)
        head = (
            f"HTTP/1.1 {status} {title}\r\n"
            "content-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


_TITLES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
}


class _HeadBuffer:
    """Sends the head of a response together with its body: one system call instead of two.

    It replaces the transport in uvicorn's object for one request and its response.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        """Replaces the transport of `cycle`."""
        self._transport = cycle.transport
        self._on_response = cycle.on_response
        self._held = b""
        self._began = False
        cycle.transport = cast(asyncio.Transport, self)
        cycle.on_response = self._on_complete

    def write(self, data: bytes) -> None:
        """Holds a head back, or sends data together with a held head."""
        if not self._began and not data.startswith(_CONTINUE):
            self._began = True
            self._held = data
        else:
            held, self._held = self._held, b""
            self._transport.write(held + data if held else data)

    def is_closing(self) -> bool:
        """Whether the connection is closing."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection after sending what was written."""
        self._flush()
        self._transport.close()

    def _on_complete(self) -> None:
        self._flush()  # a response to HEAD has no body
        self._on_response()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.write(held)
