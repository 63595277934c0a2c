"""The parser of `http_connection`: httptools, without upgrades to other protocols.

httptools assumes that a server accepts every `Upgrade`: after a head with one it would parse the
body as the next request. This service accepts none, and a server may ignore the header (RFC 9110,
section 7.8).
"""

from __future__ import annotations

from array import array
from typing import Any, Protocol

import httptools

# The headers that decide where a message ends, and whether the connection ends with it.
_FRAMING_HEADERS = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_CONNECT = b"CONNECT"


class Events(Protocol):
    """What the parser calls: uvicorn's protocol."""

    headers: list[tuple[bytes, bytes]]  # of the current request, names in lower case

    def on_message_begin(self) -> None:
        """A request begins."""

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""

    def on_headers_complete(self) -> None:
        """The head is complete."""

    def on_body(self, body: bytes) -> None:
        """A part of the body."""

    def on_message_complete(self) -> None:
        """The request is complete."""


class RequestParser(httptools.HttpRequestParser):
    """Parses the requests of one connection.

    Where httptools ends a request after a head with `Upgrade`, its state is reset; it parses a head
    that has only the framing headers, without events, and then the body.
    """

    def __init__(self, events: Events) -> None:
        """Takes the receiver of the events."""
        self._events = events
        self._reset(events)

    def ignores_upgrade(self) -> bool:
        """Whether the current head has an `Upgrade`; then httptools ends the request too early."""
        return bool(self.should_upgrade()) and not self.is_connect()

    def is_connect(self) -> bool:
        """Whether the request is for a tunnel: what follows its head is not HTTP."""
        return bool(self.get_method() == _CONNECT)

    def feed_data(self, data: bytes | bytearray | memoryview[int] | array[int]) -> None:
        """Parses the next bytes of the connection; those after the head of a CONNECT are dropped.

        Raises:
            httptools.HttpParserError: for bytes that are not well-formed HTTP.
        """
        rest = memoryview(data)
        while True:
            try:
                super().feed_data(rest)
            except httptools.HttpParserUpgrade as stopped:
                if self.is_connect():
                    return
                rest = rest[stopped.args[0] :]
                self._repeat_head()
            else:
                return

    def _repeat_head(self) -> None:
        version = self.get_http_version().encode()
        head = [self.get_method(), b" / HTTP/", version, b"\r\n"]
        for name, value in self._events.headers:
            if name in _FRAMING_HEADERS:
                head += [name, b": ", value, b"\r\n"]
        self._reset(_WithoutFirstHead(self._events))
        super().feed_data(b"".join([*head, b"\r\n"]))

    def _reset(self, events: Any) -> None:
        super().__init__(events)
        # As uvicorn sets it: requests may be pipelined after one that ends the connection.
        self.set_dangerous_leniencies(lenient_data_after_close=True)


class _WithoutFirstHead:
    """Passes events on, except those of the first head."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._in_first_head = True
        self.on_body = events.on_body
        self.on_message_complete = events.on_message_complete

    def on_message_begin(self) -> None:
        if not self._in_first_head:
            self._events.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._in_first_head:
            self._events.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_first_head:
            self._events.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._in_first_head:
            self._in_first_head = False
        else:
            self._events.on_headers_complete()
