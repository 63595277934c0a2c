"""One HTTP connection of `http_server`, with limits of time and size that uvicorn does not have.

Without them a client that sends header bytes slowly, never reads a response or pipelines thousands
of requests would hold a connection and its memory indefinitely.

This overrides internals of uvicorn: pyproject.toml limits its version, and
tests/service/transport/test_uvicorn_internals.py checks what is used here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.transport.head_buffer import HeadBuffer
from service.transport.http_parser import RequestParser
from service.transport.http_request import RequestRefused
from service.transport.listen_queue import has_unread
from service.transport.refusal_log import RefusalLog
from service.transport.request_head import (
    INCOMPLETE,
    LARGE_HEAD,
    LARGE_TRAILER,
    MALFORMED,
    MANY_HEADERS,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    TOO_MANY_PIPELINED,
    check_head,
    head_size,
    header_size,
    refused_method,
    response_to,
)

_END_OF_HEAD = b"\r\n\r\n"
_WHITESPACE = b" \t"  # around values of headers
# A connection that is idle when the server closes may have a request on the wire already.
_LAST_REQUEST_SECONDS = 0.2
_RECHECK_SECONDS = 0.005
_LINGER_SECONDS = 1.0  # in which a client whose request was refused can read the response
# A connection over the limit replaces one that has been idle for longer than this.
_IDLE_SECONDS = 5.0
# Connections over the limit that get a 503; further ones are closed without a response.
_MAX_OVER_LIMIT = 64


@dataclass
class ConnectionLimits:
    """The limits of all connections of one server, and whether it is closing."""

    head_timeout_seconds: float
    send_timeout_seconds: float
    send_max_seconds: float
    max_connections: int
    closing: bool = False  # no further request on any connection
    refusals: RefusalLog = field(default_factory=RefusalLog)


class LimitedConnection(HttpToolsProtocol):
    """A connection within limits.

    A request whose head cannot be parsed or is too large is refused here. One that is well-formed
    but not acceptable gets `refused`, a RequestRefused, in the ASGI scope's state for the
    application to return, and the connection ends after it.

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
        self._in_head = self._in_body = False
        self._part_bytes = 0  # of the part that is being parsed
        self._heads_begun = 0  # in that part
        self._body_parts = 0  # in that part
        self._head_bytes = 0  # of an incomplete head, or of line ends before one
        self._head_span = 0  # at least those bytes: of all parts that a head is in
        self._trailer_bytes = 0
        self._framing_bytes = 0  # received since the last part of the body
        self._refusal: RequestRefused | None = None  # of what is being parsed
        self._send_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._progress = self._previous_progress = 0
        self._sending_since = 0.0
        self._idle_since = 0.0
        self.lost = False
        self.on_lost: Callable[[], None] | None = None  # see http_request.Connection
        self._over_limit = False
        self._ignores_input = False
        self._is_refused = False

    @property
    def has_open_request(self) -> bool:
        """Whether a request has no complete response yet, or bytes of a response are unsent."""
        return not self._between_requests() or bool(self.transport.get_write_buffer_size())

    def abort(self) -> None:
        """Closes the connection at once; what is unsent is dropped."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Applies the connection limit, and starts the timeout of the first request's head."""
        super().connection_made(transport)
        self._idle_since = self._sending_since = self.loop.time()
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

    def eof_received(self) -> None:
        """Responds to an incomplete request; the connection is closed in any case.

        A client that only ends its sending (shutdown) cannot be told from one that has closed its
        connection, until a write fails. It counts as disconnected, so that its image is cancelled.
        """
        if self._ignores_input or self.transport.is_closing():
            return
        if self._between_requests() if self._in_head else self._in_body and self._is_broken_body():
            self.transport.write(response_to(INCOMPLETE))

    def data_received(self, data: bytes) -> None:
        """Parses bytes; those of a head that may be too large in parts."""
        while data and not self._ignores_input and not self.transport.is_closing():
            room = MAX_HEAD_BYTES - self._head_bytes
            if self._in_body or len(data) <= room or data.find(_END_OF_HEAD, 0, room) >= 0:
                self._parse(data)
                return
            self._parse(data[:room])
            data = data[room:]

    def _parse(self, part: bytes) -> None:
        was_between = not self._in_head and not self._in_body
        self._part_bytes, self._heads_begun, self._body_parts = len(part), 0, 0
        self._head_span += len(part)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserInvalidMethodError:
            starts_here = was_between and self._heads_begun == 1
            self._refuse_in_order(refused_method(part) if starts_here else MALFORMED)
            return
        except httptools.HttpParserError:
            self._refuse_in_order(self._refusal or MALFORMED)
            return
        if not self.transport.is_closing() and not self._ignores_input:
            self._count(was_between)

    def _count(self, was_between: bool) -> None:
        """Counts the bytes of a part that belong to an incomplete head or to no part of a body."""
        if self._in_body:
            self._framing_bytes = 0 if self._body_parts else self._framing_bytes + self._part_bytes
            if self._framing_bytes > MAX_HEAD_BYTES:
                self._refuse_in_order(LARGE_TRAILER)
            return
        # Bytes before a head that began within the part do not count towards that head.
        begun = self._heads_begun - was_between
        if (self._in_head and begun <= 0) or (was_between and not self._heads_begun):
            self._head_bytes += self._part_bytes
        if self._head_bytes >= MAX_HEAD_BYTES:
            self._refuse_in_order(LARGE_HEAD)
        elif (
            self._between_requests()
            and self._head_timer is None
            and self.timeout_keep_alive_task is None
        ):
            self._start_head_timeout()

    def on_message_begin(self) -> None:
        """Begins a head.

        Raises:
            ValueError: for too many pipelined requests; httptools reports it as a parser error.
        """
        if len(self.pipeline) >= MAX_PIPELINED:
            raise self._refused(TOO_MANY_PIPELINED)
        self._in_head = True
        self._head_bytes = self._trailer_bytes = self._framing_bytes = 0
        self._head_span = self._part_bytes
        self._heads_begun += 1
        self._progress += 1
        self._sending_since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header; one in the trailer of a body is dropped, as it could pass for a header.

        Raises:
            ValueError: for too many headers, and a trailer that is too large; httptools reports it
                as a parser error.
        """
        if self._in_head:
            self.headers.append((name.lower(), value.strip(_WHITESPACE)))
            if len(self.headers) > MAX_HEADERS:
                raise self._refused(MANY_HEADERS)
        else:
            self._trailer_bytes += header_size(name, value)
            if self._trailer_bytes > MAX_HEAD_BYTES:
                raise self._refused(LARGE_TRAILER)

    def on_headers_complete(self) -> None:
        """Ends a head.

        Raises:
            ValueError: for a head that is too large; httptools reports it as a parser error.
        """
        if self._head_span > MAX_HEAD_BYTES and head_size(self.url, self.headers) > MAX_HEAD_BYTES:
            raise self._refused(LARGE_HEAD)
        self._in_head, self._in_body = False, True
        self._end_head_timeout()
        state, refused = self.scope["state"], False
        state["connection"] = self
        try:
            self.expect_100_continue = check_head(self.parser.get_http_version(), self.headers)
        except RequestRefused as refusal:
            state["refused"] = refusal
            refused = True
        if self._over_limit:
            state["over_connection_limit"] = True
        super().on_headers_complete()
        HeadBuffer(self.cycle)
        if self.limits.closing or self._over_limit or refused:
            self.cycle.keep_alive = False
        if self.parser.is_connect():  # the client sends the bytes of a tunnel next
            self._ignores_input = True
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._body_parts += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends a body, unless the parser stops at an `Upgrade` and will parse the body again."""
        if not self.parser.ignores_upgrade():
            self._in_body = False
            super().on_message_complete()
            # A long last part has paused reading, and nothing else is received that would resume
            # it: the end of the connection would not be seen. Pipelined requests stay paused.
            if not self.pipeline:
                self.flow.resume_reading()

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
        if not self._between_requests():
            return
        if self.limits.closing:
            self.transport.close()
        elif self._in_head and self._head_timer is None:  # of the next request, pipelined
            self._unset_keepalive_if_required()
            self._start_head_timeout()

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
        if self._is_refused:
            self.transport.close()
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
        if self._head_bytes or self._in_head:
            seconds = self.limits.head_timeout_seconds
            detail = f"the request's head took more than {seconds:g} s"
            self._refuse(RequestRefused(408, "header_timeout", detail))
        else:
            self.transport.close()

    def _check_sending(self) -> None:
        """Closes the connection if the client has read nothing since the previous check.

        Also if it has not read a whole response for `send_max_seconds`.
        """
        unsent_bytes, now = self.transport.get_write_buffer_size(), self.loop.time()
        stalled = self._unsent_bytes and unsent_bytes >= self._unsent_bytes
        if not unsent_bytes:
            self._sending_since = now
        too_long = now - self._sending_since >= self.limits.send_max_seconds
        if too_long or (stalled and self._progress == self._previous_progress):
            self.transport.abort()
            return
        self._unsent_bytes, self._previous_progress = unsent_bytes, self._progress
        seconds = min(self.limits.send_timeout_seconds, self.limits.send_max_seconds)
        self._send_timer = self.loop.call_later(seconds, self._check_sending)

    def _refused(self, refusal: RequestRefused) -> ValueError:
        """Stores the refusal of what is being parsed; returns an error that ends the parsing."""
        self._refusal = refusal
        return ValueError(refusal.detail)

    def _refuse_in_order(self, refusal: RequestRefused) -> None:
        """Refuses what was received last, after the responses to earlier requests."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self._is_broken_body():
            self._refuse(refusal)
            return
        self._note(refusal)
        self._ignores_input = True
        cycle.keep_alive = False
        if cycle.more_body:  # of the broken request itself, whose response has begun
            self.transport.close()

    def _refuse(self, refusal: RequestRefused) -> None:
        """Responds without an ASGI application, where there is no complete request, and closes."""
        self._note(refusal)
        self._end_head_timeout()
        self._ignores_input = True
        self.transport.write(response_to(refusal))
        if self.cycle is not None and not self.cycle.response_complete:
            # The application may run already if only the body is broken; its response is dropped.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # Closing at once would reset the connection, and lose the response, if more is arriving.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._is_refused = True
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _note(self, refusal: RequestRefused) -> None:
        self.limits.refusals.add(self.client[0] if self.client else "", refusal.code)
