"""Sends the head of an HTTP response together with its body."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_CONTINUE = b"HTTP/1.1 100 "


class HeadBuffer:
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
