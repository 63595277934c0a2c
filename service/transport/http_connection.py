"""One HTTP connection of `http_server`, held within bounds of time and measure.

uvicorn bounds none of it: a trickle of header bytes, an answer that nobody reads or requests that
are pipelined by the thousand would hold a connection and its memory for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.transport.listen_queue import has_unread

_MAX_HEAD_BYTES = 64 * 1024  # of a request line with its headers
_CONTINUE = b"HTTP/1.1 100 "
_MAX_PIPELINED = 32  # requests that wait for the one at hand
# A connection that is idle when the server closes may have a request on the wire already.
_LAST_REQUEST_SECONDS = 0.2
_LOOK_AGAIN_SECONDS = 0.005
# A connection beyond the limit takes the place of one that has been idle for so long.
_IDLE_SECONDS = 5.0
# Beyond the limit and these, nobody is told anything any more.
_SPARE_CONNECTIONS = 64


@dataclass
class ConnectionLimits:
    """What all connections of one server share."""

    head_timeout_seconds: float
    send_timeout_seconds: float
    max_connections: int
    closing: bool = False  # no further request on any connection


class LimitedConnection(HttpToolsProtocol):
    """A connection within bounds.

    One that comes when there are too many takes the place of the one that has been idle longest;
    where none is, its request is marked as `crowded` in the ASGI scope's state, for the
    application to refuse, and is its last.
    """

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what uvicorn gives."""
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = False
        self._heads_begun = 0
        self._send_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._progress = self._progress_before = 0
        self._idle_since = 0.0
        self.lost = False
        self.on_lost: Callable[[], None] | None = None  # see http_request.Connection
        self._crowded = False
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Finds a place, and starts the clock of the first request's head."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._find_place()
        if self.limits.closing:
            self.shutdown()
        self._expect_head()
        self._watch_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks, and tells whoever works for the client."""
        self.lost = True
        if self.on_lost is not None:
            self.on_lost()
        self._head_arrived()
        if self._send_timer is not None:
            self._send_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; watches a head that is not whole yet."""
        if self._deaf:
            return
        was_between = self._between_requests()
        was_in_head, self._heads_begun = self._in_head, 0
        super().data_received(data)
        if self.transport.is_closing() or self._deaf:
            return
        between = self._between_requests()
        # What came before a head that began within these bytes is not counted to it.
        whole = was_in_head if not self._heads_begun else was_between and self._heads_begun == 1
        if (self._in_head and whole) or (between and not self._heads_begun):
            self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, "header_too_large", "the request's head is larger than 64 KiB")
        elif between and self._head_timer is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def on_message_begin(self) -> None:
        """A head begins.

        Raises:
            ValueError: for one too many; httptools makes it an error of the parser.
        """
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        self._in_head = True
        self._head_bytes = 0
        self._heads_begun += 1
        self._progress += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._head_arrived()
        self.scope["state"]["connection"] = self
        if self._crowded:
            self.scope["state"]["over_connection_limit"] = True
        super().on_headers_complete()
        _WholeAnswer(self.cycle)
        if self.limits.closing or self._crowded:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP; answers to what came before it go first."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self._is_broken_body():
            self._refuse(400, "malformed_request", "the request is not well-formed HTTP/1.1")
            return
        self._deaf = True
        cycle.keep_alive = False
        if cycle.more_body:  # of the broken request itself, whose answer has begun
            self.transport.close()

    def shutdown(self) -> None:
        """Ends after the request at hand; an idle connection gets a moment to bring its last."""
        if self._between_requests():
            self.loop.call_later(_LAST_REQUEST_SECONDS, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """As uvicorn does, but a draining server waits for no further request."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.limits.closing and self._between_requests():
            self.transport.close()

    def resume_writing(self) -> None:
        """The client takes its answer."""
        self._progress += 1
        super().resume_writing()

    def _find_place(self) -> None:
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
        elif excess > _SPARE_CONNECTIONS:
            self.transport.abort()
        else:
            self._crowded = True

    def _between_requests(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _is_broken_body(self) -> bool:
        """Whether the request at hand is the one whose bytes are wrong, and is unanswered."""
        cycle = self.cycle
        return cycle.more_body and not self.pipeline and not cycle.response_started

    def _close_if_idle(self) -> None:
        if self._in_head or self._head_bytes or not self._between_requests():
            return
        # On a busy machine timers ring before the loop has looked at its sockets.
        if has_unread(self.transport.get_extra_info("socket")):
            self.loop.call_later(_LOOK_AGAIN_SECONDS, self._close_if_idle)
        else:
            self.transport.close()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(
            self.limits.head_timeout_seconds, self._on_slow_head
        )

    def _head_arrived(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            seconds = self.limits.head_timeout_seconds
            self._refuse(408, "header_timeout", f"the request's head took more than {seconds:g} s")
        else:
            self.transport.close()

    def _watch_sending(self) -> None:
        """Lets a client go that took nothing of its answer since the last look."""
        unsent_bytes = self.transport.get_write_buffer_size()
        stalled = self._unsent_bytes and unsent_bytes >= self._unsent_bytes
        if stalled and self._progress == self._progress_before:
            self.transport.abort()
            return
        self._unsent_bytes, self._progress_before = unsent_bytes, self._progress
        seconds = self.limits.send_timeout_seconds
        self._send_timer = self.loop.call_later(seconds, self._watch_sending)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answers below HTTP, where there is no request to answer, and closes."""
        self._head_arrived()
        self._deaf = True
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


class _WholeAnswer:
    """Holds the head of an answer back until its body comes: one system call instead of two.

    It takes the place of the transport in uvicorn's object for one request and its answer.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        """Steps between a request's answer and its connection."""
        self._transport = cycle.transport
        self._on_response = cycle.on_response
        self._held = b""
        self._began = False
        cycle.transport = cast(asyncio.Transport, self)
        cycle.on_response = self._on_complete

    def write(self, data: bytes) -> None:
        """Sends data with what was held back, or holds back a head."""
        if not self._began and not data.startswith(_CONTINUE):
            self._began = True
            self._held = data
        else:
            held, self._held = self._held, b""
            self._transport.write(held + data if held else data)

    def is_closing(self) -> bool:
        """Whether the connection ends."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection after what was written."""
        self._flush()
        self._transport.close()

    def _on_complete(self) -> None:
        self._flush()  # an answer to HEAD has no body to go with
        self._on_response()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.write(held)
